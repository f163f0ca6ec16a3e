//! A model on its way, as a person sees it.

use std::time::Duration;

use crate::hub::Hub;
use crate::program::hostile_model;
use crate::session::{Session, Start};

fn start(hub: &Hub, home: &std::path::Path) -> Session {
    Start::new(["run", "--model", "org/name", "--prompt", "a a a", "--max-tokens", "2"])
        .variable("HF_ENDPOINT", &hub.address)
        .variable("HF_HOME", home.to_str().unwrap())
        .variable("NO_PROXY", "127.0.0.1")
        .go()
}

#[test]
fn a_download_shows_how_far_it_is_and_gives_way_to_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&hostile_model(dir.path()), Duration::from_millis(20));
    let mut session = start(&hub, dir.path());
    session.is_taken();
    session.shows("LOADING");
    session.shows("loading org/name/model.safetensors");
    session.shows("of 5.56 MiB");
    session.until("a bar", |screen| screen.contents().contains("██"));
    session.hides("LOADING");
    session.shows("PAUSED");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}

#[test]
fn one_who_leaves_during_a_download_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&hostile_model(dir.path()), Duration::from_millis(400));
    let mut session = start(&hub, dir.path());
    session.shows("loading org/name/model.safetensors");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
    // What came is kept for the next time.
    assert!(dir.path().join("hub/models--org--name/blobs/model-safetensors-5824944.part").exists());
}
