use proptest::prelude::*;

use super::*;
use crate::model::demo;

fn template(source: &str) -> ChatTemplate {
    let special = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
    ChatTemplate::new("t".into(), source, special).unwrap()
}

fn messages(said: &[(Role, &str)]) -> Vec<Message> {
    said.iter().map(|&(role, text)| Message::new(role, text)).collect()
}

const AT: Date = Date(1_709_210_096);

fn rendered(source: &str) -> String {
    let said = [(Role::User, "Hi <there>"), (Role::Assistant, "Hello."), (Role::User, "Who?")];
    template(source).render(&messages(&said), AT).unwrap()
}

fn refused(source: &str) -> String {
    let error = template(source).render(&messages(&[(Role::User, "Hi")]), AT).unwrap_err();
    assert!(error.is_bad_input());
    let line = error.to_string();
    assert!(line.starts_with("t: chat template: ") && !line.contains('\n') && line.len() < 400, "{line}");
    line
}

#[test]
fn the_real_phi_3_template_by_hand() {
    let Some(folder) = std::env::var_os("KVISTA_TEST_DATA") else { return };
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(&folder).join("tokenizers/phi-3-tokenizer_config.json");
    std::fs::copy(from, dir.path().join("tokenizer_config.json")).unwrap();
    let phi = ChatTemplate::of_folder(dir.path(), &demo::tokenizer()).unwrap();
    let said = [
        (Role::System, "Be brief."),
        (Role::User, "Hi"),
        (Role::Assistant, "Hello."),
        (Role::User, "Who are you?"),
    ];
    let whole = "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nWho are \
                 you?<|end|>\n<|assistant|>\n";
    assert_eq!(phi.render(&messages(&said), AT).unwrap(), whole);
    let first = whole.find("Hello").unwrap();
    assert_eq!(phi.render(&messages(&said[..2]), AT).unwrap(), &whole[..first]);
}

/// The shapes that templates of well-known families have, each with what only it uses.
#[test]
fn templates_in_the_styles_of_well_known_families() {
    let chatml = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + \
                  '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- \
                  '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    assert_eq!(
        rendered(chatml),
        "<|im_start|>user\nHi <there><|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let brackets = "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ \
                    raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + \
                    m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif \
                    %}{% endfor %}";
    assert_eq!(rendered(brackets), "<s>[INST] Hi <there> [/INST] Hello.</s>[INST] Who? [/INST]");
    let said = messages(&[(Role::User, "a"), (Role::User, "b")]);
    let error = template(brackets).render(&said, AT).unwrap_err().to_string();
    assert_eq!(error, "t: chat template: the template says: roles must alternate");
    // What is thought is dropped from earlier answers; the last user's turn is looked for from behind.
    let thinking = "{%- set ns = namespace(last=0) %}\n{%- for m in messages[::-1] %}\n    {%- set index = \
                    messages|length - 1 - loop.index0 %}\n    {%- if m.role == 'user' and not \
                    m.content.startswith('<tool>') %}\n        {%- set ns.last = index %}\n        {%- break %}\n    {%- \
                    endif %}\n{%- endfor %}\n{%- for m in messages %}\n    {%- set content = m.content %}\n    {%- if \
                    m.role == 'assistant' and loop.index0 < ns.last and '</think>' in content %}\n        {%- set content = \
                    content.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n    {{- m.role ~ ':' ~ content ~ \
                    ';' }}\n{%- endfor %}";
    let said =
        [(Role::User, "Hi"), (Role::Assistant, "<think>\nhm\n</think>\n\nHello."), (Role::User, "Who?")];
    assert_eq!(
        template(thinking).render(&messages(&said), AT).unwrap(),
        "user:Hi;assistant:Hello.;user:Who?;"
    );
    let dated = "{%- if not date is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}Today: {{ date }}\n\
                 {%- if tools is not none %}tools{% endif %}\n  {% generation %}\n{{ messages[0]['content'] | tojson \
                 }}{%- endgeneration %}\n";
    assert_eq!(rendered(dated), "Today: 29 Feb 2024\"Hi <there>\"");
}

#[test]
fn json_is_pythons() {
    let value = "{% set x = {'b': [1, 2.5, none, true], 'a': 'ä\\n<&\"', 'c': {}} %}";
    assert_eq!(
        rendered(&format!("{value}{{{{ x | tojson }}}}")),
        r#"{"b": [1, 2.5, null, true], "a": "ä\n<&\"", "c": {}}"#
    );
    assert_eq!(
        rendered(&format!(
            "{value}{{{{ x | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}}}"
        )),
        r#"{"a":"\u00e4\n<&\"","b":[1,2.5,null,true],"c":{}}"#
    );
    assert_eq!(rendered("{{ {'a': [1, {}]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    assert!(refused("{{ 1 | tojson(colour=2) }}").contains("colour"));
}

#[test]
fn a_folder_has_its_template_in_one_of_three_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let found = || ChatTemplate::of_folder(dir.path(), &demo::tokenizer());
    let source = || found().unwrap().render(&[], AT).unwrap();
    let none = found().unwrap_err().to_string();
    assert!(none.contains("no chat template") && none.contains("leave --chat out"), "{none}");
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<b>"}, "eos_token": null}"#);
    assert!(found().is_err());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<b>"}, "chat_template":
            [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}list"}]}"#,
    );
    assert_eq!(source(), "<b>list");
    write("chat_template.json", r#"{"chat_template": "{{ bos_token }}file"}"#);
    assert_eq!(source(), "<b>file");
    write("chat_template.jinja", "{{ bos_token }}own{{ eos_token }}\n");
    assert_eq!(source(), "<b>own");
    write("tokenizer_config.json", "{}");
    assert_eq!(source(), "<s>own", "as the tokenizer spells it");
    write("tokenizer_config.json", "[");
    assert!(found().unwrap_err().to_string().contains("tokenizer_config.json: chat template: "));
    write("chat_template.jinja", &"x".repeat(MAX_TEMPLATE_BYTES + 1));
    write("tokenizer_config.json", "{}");
    assert!(found().unwrap_err().to_string().contains("longer than"));
    let metadata = ChatTemplate::of_metadata("m.gguf", "{{ bos_token }}", &demo::tokenizer()).unwrap();
    assert_eq!(metadata.render(&[], AT).unwrap(), "<s>");
}

/// Whatever a template does, it ends soon, keeps within its memory and says so in one line.
#[test]
fn hostile_templates_are_cut_off() {
    let costly = [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for a in range(200) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 90000000 }}",
        "{% set x %}{% for a in range(90000) %}{{ messages[0].content * 9999 }}{% endfor %}{% endset %}",
        "{% set ns = namespace(x='aa') %}{% for a in range(99) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaa') %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(34) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    ];
    for source in costly {
        let started = std::time::Instant::now();
        refused(source);
        assert!(started.elapsed().as_secs() < 20, "{source}");
    }
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'etc/passwd' %}",
        "{% extends messages %}",
        "{{ nothing.at.all }}",
        "{% for %}",
        "{{ '\u{1b}[2J' | no_such_filter }}",
        "{{ raise_exception('a\nb\u{1b}[2J') }}",
        "{{ messages | tojson(indent='x'",
        &"{% if 1 %}".repeat(5_000),
        &"(".repeat(50_000),
        &format!("{{{{ {} }}}}", "[".repeat(50_000)),
        &format!("{{{{ {} }}}}", "1+".repeat(50_000)),
    ] {
        if let Ok(text) = template(source).render(&messages(&[(Role::User, "Hi")]), AT) {
            assert!(source.starts_with('('), "{text}");
        } else {
            assert!(!refused(source).contains('\u{1b}'));
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_a_template_or_refused(
        parts in prop::collection::vec(prop_oneof![
            Just("{{ "), Just(" }}"), Just("{% "), Just(" %}"), Just("messages"), Just("[0]"), Just(".content"),
            Just("for m in "), Just("endfor"), Just("if "), Just("endif"), Just("set x = "), Just("'a'"), Just("|"),
            Just("tojson"), Just("generation"), Just("("), Just(")"), Just("{#"), Just("#}"), Just("-"), Just("é"),
        ], 0..40)
    ) {
        let source = parts.concat();
        let said = messages(&[(Role::User, "Hi")]);
        if let Err(error) = template(&source).render(&said, AT) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn what_is_said_stays_as_it_is(text in "\\PC{0,60}") {
        let source = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
        let said = messages(&[(Role::User, &text)]);
        prop_assert_eq!(template(source).render(&said, AT).unwrap(), format!("[{text}]"));
    }
}
