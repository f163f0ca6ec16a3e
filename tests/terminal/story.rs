//! The first minute: the demo, its answer, a lower budget, the victims.

use crate::session::{Session, Start};

/// A line of the screen that holds a text.
fn line(session: &Session, with: &str) -> String {
    session.contents().lines().find(|line| line.contains(with)).unwrap_or_default().to_owned()
}

/// Sets the budget in the parameter panel. Its first row is the policy, its second the budget.
fn set_budget(session: &Session, value: &str) {
    session.keys("pkkkk");
    session.shows("▸ policy");
    session.keys("j");
    session.shows("▸   budget");
    session.keys("\r\u{15}");
    session.keys(value);
    session.until("the value typed", |s| {
        s.contents().lines().any(|l| l.contains("▸   budget") && l.contains(value))
    });
    session.keys("\r");
    session.shows("waits for r");
    session.keys("\u{1b}");
    session.hides("A/B: Space");
}

#[test]
fn the_demo_is_right_until_its_budget_is_lowered() {
    let mut session = Start::new([""; 0]).go();
    session.is_taken();
    session.shows("What is the pass key? The pass key is");
    session.shows("Space runs the model");
    session.shows("PAUSED");
    assert!(line(&session, "answer").contains("nothing yet"), "{}", session.contents());

    // As fast as it goes: the pace is for people.
    session.keys("T ");
    session.shows("✔ right");
    session.shows("DONE");

    set_budget(&session, "25%");
    session.shows("r runs the prompt again");
    session.shows("$ kvista run --policy h2o:budget=25%");
    session.keys("r");
    session.shows("✘ wrong");
    session.shows("vs last run: differs");
    session.shows("vs full cache: differs");
    session.shows("DONE");

    session.keys("4");
    session.shows("score below the cutoff");
    session.keys("/token~6");
    session.shows("filter token~6");
    session.keys("\r");
    session.hides("/token~6");
    session.keys("j");
    let selected = line(&session, "▸");
    assert!(selected.contains("'6'"), "{}", session.contents());
    session.shows("now raise the budget");

    set_budget(&session, "100%");
    session.shows("what was evicted stays lost");
    session.keys("r");
    session.shows("✔ right");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}

#[test]
fn every_digit_opens_its_view() {
    let mut session =
        Start::new(["run", "--policy", "h2o:budget=100", "--kcache", "n=16,l=1", "--pace", "4000"]).go();
    session.shows("Space runs the model");
    session.keys(" ");
    session.shows("DONE");
    for (key, name, content) in [
        ("2", "2 Blocks", "block tables"),
        ("3", "3 Attention", "probability"),
        ("4", "4 Evictions", "cutoff"),
        ("5", "5 Traffic", "host"),
        ("6", "6 Latency", "p99"),
        ("7", "7 Log", "what happened"),
        ("8", "8 Text", "fate"),
        ("9", "9 Policy", "budget"),
        ("1", "1 Overview", "blocks"),
    ] {
        session.keys(key);
        // The open view's tab is set apart, so wait for what only its pane says.
        session.until(content, |s| {
            s.contents().contains(name) && s.contents().lines().skip(3).any(|l| l.contains(content))
        });
    }
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn a_prompt_can_be_typed() {
    let mut session = Start::new(["run", "--pace", "4000", "--max-tokens", "8", "--prompt", "Rosa"]).go();
    session.shows("Space runs the model");
    session.keys("P");
    session.shows("Enter runs it");
    session.keys("Finn was a lonely boy");
    session.shows("21 characters");
    session.keys("\r");
    session.hides("Enter runs it");
    session.shows("--prompt 'Finn was a lonely boy'");
    session.shows("DONE");
    session.shows("Finn was a lonely boy");
    // Pasted text is typed, not obeyed as keys.
    session.keys("P");
    session.shows("Enter runs it");
    session.keys("\u{1b}[200~q\nq\u{1b}[201~");
    session.shows("3 characters");
    session.keys("\u{1b}");
    session.hides("Enter runs it");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn help_is_searched_and_closed() {
    let mut session = Start::new(["run", "--prompt", "Mia"]).go();
    session.shows("Space runs the model");
    session.keys("?");
    session.shows("close what is on top");
    session.keys("bookmark");
    session.shows("list of bookmarks");
    session.hides("close what is on top");
    session.keys("\u{1b}");
    session.hides("list of bookmarks");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}
