//! Reading theme files: layers from the root of the inheritance to the theme asked for, then roles over one palette.

use std::collections::BTreeMap;
use std::ops::Range;

use ratatui::style::{Color, Modifier, Style};
use toml::de::{DeTable, DeValue};

use super::error::{At, ThemeError, nearest};
use super::ramp::{PRESETS, Ramp};
use super::{BUILT_IN, Page, ROLES, Role, Theme, ThemeFile};
use crate::event::PHASES;

/// The theme that others start from unless they say otherwise.
const ROOT: &str = "dark";
/// Says in `[ramp] use` that heat is drawn as glyphs.
const GLYPHS: &str = "glyphs";
/// No theme that a person wrote inherits through more files than this.
const MAX_LAYERS: usize = 16;

const ANSI_NAMES: [(&str, Color); 17] = [
    ("default", Color::Reset),
    ("black", Color::Black),
    ("red", Color::Red),
    ("green", Color::Green),
    ("yellow", Color::Yellow),
    ("blue", Color::Blue),
    ("magenta", Color::Magenta),
    ("cyan", Color::Cyan),
    ("white", Color::Gray),
    ("bright-black", Color::DarkGray),
    ("bright-red", Color::LightRed),
    ("bright-green", Color::LightGreen),
    ("bright-yellow", Color::LightYellow),
    ("bright-blue", Color::LightBlue),
    ("bright-magenta", Color::LightMagenta),
    ("bright-cyan", Color::LightCyan),
    ("bright-white", Color::White),
];

const MODIFIERS: [(&str, Modifier); 6] = [
    ("bold", Modifier::BOLD),
    ("dim", Modifier::DIM),
    ("italic", Modifier::ITALIC),
    ("underlined", Modifier::UNDERLINED),
    ("reversed", Modifier::REVERSED),
    ("crossed-out", Modifier::CROSSED_OUT),
];

/// A string and where it stands.
type Word = (String, Range<usize>);

/// A role as a file spells it, colours not yet looked up.
#[derive(Default)]
struct RoleSpec {
    fg: Option<Word>,
    bg: Option<Word>,
    modifier: Modifier,
}

/// One file.
#[derive(Default)]
struct Layer {
    file: String,
    text: String,
    inherits: Option<Word>,
    page: [Option<Word>; 2],
    palette: BTreeMap<String, Word>,
    roles: Vec<(Role, RoleSpec)>,
    phases: Option<Vec<Word>>,
    ramp_in_use: Option<Word>,
    reverse: Option<bool>,
    ramps: Vec<(String, Vec<Word>)>,
}

pub(super) fn load(name: &str, find: &dyn Fn(&str) -> Option<ThemeFile>) -> Result<Theme, ThemeError> {
    let layers = layers(name, find)?;
    resolve(name, &layers)
}

/// The layers of a theme, root first.
fn layers(name: &str, find: &dyn Fn(&str) -> Option<ThemeFile>) -> Result<Vec<Layer>, ThemeError> {
    let (file, mut is_own) = source(name, find, true).ok_or_else(|| ThemeError::Unknown {
        name: name.to_owned(),
        nearest: nearest(name, built_in_names()).map(str::to_owned),
    })?;
    let mut layers = vec![Layer::parse(file)?];
    let mut chain = vec![(name.to_owned(), is_own)];
    loop {
        let child = layers.last().expect("there is at least the theme asked for");
        let (parent, span) = match &child.inherits {
            Some((parent, span)) => (parent.clone(), span.clone()),
            None if (chain.last().expect("as many as layers").0.as_str(), is_own) == (ROOT, false) => break,
            None => (ROOT.to_owned(), 0..0),
        };
        // A person's `dark` may start from the built-in `dark`, and only from that one.
        let may_be_own = chain.last().is_none_or(|(name, _)| *name != parent) && child.inherits.is_some();
        let Some((file, own)) = source(&parent, find, may_be_own) else {
            return Err(ThemeError::Parent {
                at: child.at(&span),
                nearest: nearest(&parent, built_in_names()).map(str::to_owned),
                name: parent,
            });
        };
        if chain.contains(&(parent.clone(), own)) || chain.len() >= MAX_LAYERS {
            let names = chain.iter().map(|(name, _)| name.as_str()).chain([parent.as_str()]);
            return Err(ThemeError::Cycle {
                at: child.at(&span),
                chain: names.collect::<Vec<_>>().join(" -> "),
            });
        }
        layers.push(Layer::parse(file)?);
        chain.push((parent, own));
        is_own = own;
    }
    layers.reverse();
    Ok(layers)
}

fn built_in_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.into_iter().map(|(name, _)| name)
}

/// A theme's text, and whether it is the person's own.
fn source(
    name: &str,
    find: &dyn Fn(&str) -> Option<ThemeFile>,
    may_be_own: bool,
) -> Option<(ThemeFile, bool)> {
    if may_be_own && let Some(file) = find(name) {
        return Some((file, true));
    }
    let (name, text) = BUILT_IN.into_iter().find(|(built_in, _)| *built_in == name)?;
    Some((ThemeFile { path: format!("{name}.toml (built in)"), text: text.to_owned() }, false))
}

fn resolve(name: &str, layers: &[Layer]) -> Result<Theme, ThemeError> {
    let mut palette: BTreeMap<&str, Color> = BTreeMap::new();
    for layer in layers {
        for (key, word) in &layer.palette {
            // A palette entry may not name another: one look-up, no circles.
            palette.insert(key, layer.color(word, &BTreeMap::new())?);
        }
    }
    let reverse = layers.iter().rev().find_map(|layer| layer.reverse).unwrap_or(false);
    let mut theme = Theme {
        name: name.to_owned(),
        page: Page { background: [0; 3], foreground: [255; 3] },
        roles: [Style::new(); ROLES],
        phases: [Color::Reset; PHASES],
        ramps: PRESETS.iter().filter_map(|preset| Ramp::preset(preset, reverse)).collect(),
        ramp: Some(0),
    };
    for layer in layers {
        layer.apply(&palette, reverse, &mut theme)?;
    }
    Ok(theme)
}

impl Layer {
    fn at(&self, span: &Range<usize>) -> At {
        At::new(&self.file, &self.text, span.start)
    }

    fn apply(
        &self,
        palette: &BTreeMap<&str, Color>,
        reverse: bool,
        theme: &mut Theme,
    ) -> Result<(), ThemeError> {
        let [background, foreground] = &self.page;
        if let Some(word) = background {
            theme.page.background = self.rgb(word, palette)?;
        }
        if let Some(word) = foreground {
            theme.page.foreground = self.rgb(word, palette)?;
        }
        for (role, spec) in &self.roles {
            let look_up =
                |word: &Option<Word>| word.as_ref().map(|word| self.color(word, palette)).transpose();
            theme.roles[*role as usize] = Style {
                fg: look_up(&spec.fg)?,
                bg: look_up(&spec.bg)?,
                add_modifier: spec.modifier,
                ..Style::new()
            };
        }
        for (phase, word) in theme.phases.iter_mut().zip(self.phases.iter().flatten()) {
            *phase = self.color(word, palette)?;
        }
        for (name, words) in &self.ramps {
            let stops = words.iter().map(|word| self.rgb(word, palette)).collect::<Result<Vec<_>, _>>()?;
            theme.ramps.retain(|ramp| ramp.name() != name);
            theme.ramps.push(Ramp::stops(name, &stops, reverse));
        }
        if let Some((name, span)) = &self.ramp_in_use {
            theme.ramp = if name == GLYPHS {
                None
            } else if let Some(index) = theme.ramps.iter().position(|ramp| ramp.name() == name) {
                Some(index)
            } else {
                let names = theme.ramps.iter().map(Ramp::name).chain([GLYPHS]);
                return Err(ThemeError::UnknownName {
                    at: self.at(span),
                    what: "ramp",
                    found: name.clone(),
                    nearest: nearest(name, names).map(str::to_owned),
                });
            };
        }
        Ok(())
    }

    fn color(&self, (word, span): &Word, palette: &BTreeMap<&str, Color>) -> Result<Color, ThemeError> {
        if let Some(color) = palette.get(word.as_str()).copied().or_else(|| hex(word)) {
            return Ok(color);
        }
        if let Some((_, color)) = ANSI_NAMES.into_iter().find(|(name, _)| name == word) {
            return Ok(color);
        }
        let names = palette.keys().copied().chain(ANSI_NAMES.into_iter().map(|(name, _)| name));
        Err(ThemeError::Color {
            at: self.at(span),
            found: word.clone(),
            nearest: nearest(word, names).map(str::to_owned),
        })
    }

    /// A colour that must have a value of its own.
    fn rgb(&self, word: &Word, palette: &BTreeMap<&str, Color>) -> Result<[u8; 3], ThemeError> {
        super::rgb(self.color(word, palette)?).ok_or_else(|| ThemeError::Color {
            at: self.at(&word.1),
            found: word.0.clone(),
            nearest: None,
        })
    }

    fn parse(file: ThemeFile) -> Result<Self, ThemeError> {
        let mut layer = Self { file: file.path, ..Self::default() };
        let document = DeTable::parse(&file.text).map_err(|error| ThemeError::Syntax {
            at: At::new(&layer.file, &file.text, error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        })?;
        let reader = Reader { file: &layer.file, text: &file.text };
        for (key, value) in document.get_ref() {
            match key.get_ref().as_ref() {
                "inherits" => layer.inherits = Some(reader.word("inherits", value)?),
                "phases" => layer.phases = Some(reader.phases(value)?),
                "page" => {
                    for (key, value) in reader.table("page", value)? {
                        match key.get_ref().as_ref() {
                            "background" => layer.page[0] = Some(reader.word("background", value)?),
                            "foreground" => layer.page[1] = Some(reader.word("foreground", value)?),
                            _ => return Err(reader.unknown("key", key, ["background", "foreground"])),
                        }
                    }
                }
                "palette" => {
                    for (key, value) in reader.table("palette", value)? {
                        layer.palette.insert(key.get_ref().to_string(), reader.word(key.get_ref(), value)?);
                    }
                }
                "roles" => {
                    for (key, value) in reader.table("roles", value)? {
                        let role = Role::ALL
                            .into_iter()
                            .find(|role| role.name() == key.get_ref())
                            .ok_or_else(|| reader.unknown("role", key, Role::ALL.map(Role::name)))?;
                        layer.roles.push((role, reader.role(role.name(), value)?));
                    }
                }
                "ramp" => {
                    for (key, value) in reader.table("ramp", value)? {
                        match key.get_ref().as_ref() {
                            "use" => layer.ramp_in_use = Some(reader.word("use", value)?),
                            "reverse" => layer.reverse = Some(reader.switch("reverse", value)?),
                            name => layer.ramps.push((name.to_owned(), reader.stops(name, value)?)),
                        }
                    }
                }
                _ => {
                    let known = ["inherits", "page", "palette", "phases", "ramp", "roles"];
                    return Err(reader.unknown("key", key, known));
                }
            }
        }
        layer.text = file.text;
        Ok(layer)
    }
}

type Key<'a> = toml::Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = toml::Spanned<DeValue<'a>>;

/// Turns TOML values into what a theme needs, and complains with a place where they are something else.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn at(&self, span: &Range<usize>) -> At {
        At::new(self.file, self.text, span.start)
    }

    fn unknown<'n>(
        &self,
        what: &'static str,
        key: &Key<'_>,
        known: impl IntoIterator<Item = &'n str>,
    ) -> ThemeError {
        ThemeError::UnknownName {
            at: self.at(&key.span()),
            what,
            found: key.get_ref().to_string(),
            nearest: nearest(key.get_ref(), known).map(str::to_owned),
        }
    }

    fn kind(&self, key: &str, expected: &'static str, value: &Value<'_>) -> ThemeError {
        ThemeError::Kind {
            at: self.at(&value.span()),
            key: key.to_owned(),
            expected,
            found: format!("{} {}", article(value.get_ref().type_str()), value.get_ref().type_str()),
        }
    }

    fn word(&self, key: &str, value: &Value<'_>) -> Result<Word, ThemeError> {
        let text = value.get_ref().as_str().ok_or_else(|| self.kind(key, "a string", value))?;
        Ok((text.to_owned(), value.span()))
    }

    fn switch(&self, key: &str, value: &Value<'_>) -> Result<bool, ThemeError> {
        value.get_ref().as_bool().ok_or_else(|| self.kind(key, "true or false", value))
    }

    fn table<'v, 'd>(&self, key: &str, value: &'v Value<'d>) -> Result<&'v DeTable<'d>, ThemeError> {
        value.get_ref().as_table().ok_or_else(|| self.kind(key, "a table", value))
    }

    fn words(&self, key: &str, expected: &'static str, value: &Value<'_>) -> Result<Vec<Word>, ThemeError> {
        let array = value.get_ref().as_array().ok_or_else(|| self.kind(key, expected, value))?;
        array.iter().map(|item| self.word(key, item)).collect()
    }

    fn stops(&self, key: &str, value: &Value<'_>) -> Result<Vec<Word>, ThemeError> {
        let words = self.words(key, "an array of colours", value)?;
        if words.is_empty() { Err(self.count(key, "at least one colour", 0, value)) } else { Ok(words) }
    }

    fn phases(&self, value: &Value<'_>) -> Result<Vec<Word>, ThemeError> {
        let words = self.words("phases", "an array of twelve colours", value)?;
        if words.len() == PHASES {
            Ok(words)
        } else {
            Err(self.count("phases", "an array of twelve colours", words.len(), value))
        }
    }

    fn count(&self, key: &str, expected: &'static str, found: usize, value: &Value<'_>) -> ThemeError {
        ThemeError::Kind {
            at: self.at(&value.span()),
            key: key.to_owned(),
            expected,
            found: found.to_string(),
        }
    }

    fn role(&self, name: &str, value: &Value<'_>) -> Result<RoleSpec, ThemeError> {
        let mut spec = RoleSpec::default();
        if value.get_ref().is_str() {
            spec.fg = Some(self.word(name, value)?);
            return Ok(spec);
        }
        let table =
            value.get_ref().as_table().ok_or_else(|| self.kind(name, "a colour or a table", value))?;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "fg" => spec.fg = Some(self.word("fg", value)?),
                "bg" => spec.bg = Some(self.word("bg", value)?),
                "mod" => spec.modifier = self.modifiers(value)?,
                _ => return Err(self.unknown("key", key, ["fg", "bg", "mod"])),
            }
        }
        Ok(spec)
    }

    fn modifiers(&self, value: &Value<'_>) -> Result<Modifier, ThemeError> {
        let mut all = Modifier::empty();
        for (word, span) in self.words("mod", "an array of attributes", value)? {
            let Some((_, modifier)) = MODIFIERS.into_iter().find(|(name, _)| *name == word) else {
                return Err(ThemeError::UnknownName {
                    at: self.at(&span),
                    what: "attribute",
                    nearest: nearest(&word, MODIFIERS.map(|(name, _)| name)).map(str::to_owned),
                    found: word,
                });
            };
            all |= modifier;
        }
        Ok(all)
    }
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// `#rgb` or `#rrggbb`.
fn hex(word: &str) -> Option<Color> {
    let digits = word.strip_prefix('#')?;
    let value = |part: &str| u8::from_str_radix(part, 16).ok();
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match digits.len() {
        3 => {
            let twice = |i: usize| value(&digits[i..=i]).map(|digit| digit * 17);
            Some(Color::Rgb(twice(0)?, twice(1)?, twice(2)?))
        }
        6 => Some(Color::Rgb(value(&digits[0..2])?, value(&digits[2..4])?, value(&digits[4..6])?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::theme::{Depth, Symbols};

    fn files(files: &[(&str, &str)]) -> impl Fn(&str) -> Option<ThemeFile> + use<> {
        let files: Vec<(String, String)> =
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        move |name| {
            let (name, text) = files.iter().find(|(file, _)| file == name)?;
            Some(ThemeFile { path: format!("{name}.toml"), text: text.clone() })
        }
    }

    fn message(text: &str) -> String {
        Theme::load("mine", &files(&[("mine", text)])).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_told_in_one_line_with_their_place() {
        let cases = [
            ("[roles]\ntittle = \"red\"", "mine.toml:2:1: unknown role 'tittle', did you mean 'title'?"),
            (
                "[roles]\ntitle = \"rad\"",
                "mine.toml:2:9: 'rad' is not a colour, did you mean 'red'?: give #rrggbb, a palette name, an ANSI \
                 name or default",
            ),
            ("role = 3", "mine.toml:1:1: unknown key 'role', did you mean 'roles'?"),
            ("[roles]\ntitle = { color = \"red\" }", "mine.toml:2:11: unknown key 'color'"),
            (
                "[roles]\ntitle = { mod = [\"bald\"] }",
                "mine.toml:2:18: unknown attribute 'bald', did you mean 'bold'?",
            ),
            ("inherits = 7", "mine.toml:1:12: inherits must be a string, found an integer"),
            ("phases = [\"red\"]", "mine.toml:1:10: phases must be an array of twelve colours, found 1"),
            ("[ramp]\nuse = \"cividi\"", "mine.toml:2:7: unknown ramp 'cividi', did you mean 'cividis'?"),
            ("[ramp]\nmine = []", "mine.toml:2:8: mine must be at least one colour, found 0"),
            (
                "inherits = \"drak\"",
                "mine.toml:1:12: inherits 'drak', but no theme is called so, did you mean 'dark'?",
            ),
            (
                "[page]\nbackground = \"default\"",
                "mine.toml:2:14: 'default' is not a colour: give #rrggbb, a palette name, an ANSI name or default",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(message(text), expected);
        }
    }

    #[test]
    fn broken_toml_is_told_in_one_line_with_its_place() {
        let message = message("[roles]\ntitle = \n");
        assert!(message.starts_with("mine.toml:2:"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn an_unknown_theme_is_named() {
        let error = Theme::load("drak", &|_| None).unwrap_err().to_string();
        assert_eq!(error, "no theme is called 'drak', did you mean 'dark'?");
    }

    #[test]
    fn circles_are_found() {
        let find = files(&[("a", "inherits = \"b\""), ("b", "\ninherits = \"a\"")]);
        let error = Theme::load("a", &find).unwrap_err().to_string();
        assert_eq!(error, "b.toml:2:12: themes inherit in a circle: a -> b -> a");
    }

    #[test]
    fn a_theme_may_start_from_the_built_in_one_it_replaces() {
        let find = files(&[("dark", "inherits = \"dark\"\n[roles]\ntitle = \"#010203\"")]);
        let styles = Theme::load("dark", &find).unwrap().styles(Depth::True, Symbols::Block);
        assert_eq!(styles[Role::Title].fg, Some(Color::Rgb(1, 2, 3)));
        let built_in = Theme::built_in("dark").unwrap().styles(Depth::True, Symbols::Block);
        assert_eq!(styles[Role::Evicted], built_in[Role::Evicted]);
    }

    #[test]
    fn an_inherited_role_follows_a_palette_changed_below_it() {
        let base = "[palette]\nink = \"#111111\"\n[roles]\ntitle = { fg = \"ink\", mod = [\"bold\"] }";
        let mine = "inherits = \"base\"\n[palette]\nink = \"#22aa33\"";
        let listed = [("base", base), ("mine", mine)];
        let find = files(&listed);
        let styles = Theme::load("mine", &find).unwrap().styles(Depth::True, Symbols::Block);
        assert_eq!(styles[Role::Title].fg, Some(Color::Rgb(0x22, 0xaa, 0x33)));
        assert_eq!(styles[Role::Title].add_modifier, Modifier::BOLD);
    }

    #[test]
    fn own_ramps_can_be_used_by_name() {
        let find = files(&[("mine", "[ramp]\nuse = \"slate\"\nslate = [\"#000\", \"#fff\"]")]);
        let styles = Theme::load("mine", &find).unwrap().styles(Depth::True, Symbols::Block);
        assert_eq!(styles.ramp_name(), "slate");
        assert_eq!(styles.heat(1.0).color, Color::Rgb(255, 255, 255));
    }

    #[test]
    fn hexadecimal_colours() {
        assert_eq!(hex("#fff"), Some(Color::Rgb(255, 255, 255)));
        assert_eq!(hex("#102030"), Some(Color::Rgb(16, 32, 48)));
        for bad in ["", "#", "#12", "#12345", "#ggg", "fff", "#+1+1+1", "#äé"] {
            assert_eq!(hex(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_loads_or_is_refused(text in "\\PC{0,80}") {
            let _ = Theme::load("mine", &files(&[("mine", &text)]));
        }
    }
}
