//! A machine's own environment and secrets: the whole agent on a pretended guest.

use std::fs;

use kiln_guest::identity::Identity;
use kiln_guest::limits::ENVIRONMENT_BYTES_MAX;
use kiln_guest::message::{Configure, ExecRequest};
use kiln_guest::private::Environment;
use kiln_guest::secret::{Entropy, SecretValue};
use kiln_guest::token::{Epoch, SecretName, VariableName};
use kiln_guest::{ErrorKind, SessionError};

use crate::harness::{Agent, run, sh, soon, stdout_of};

fn environment(all: &[(&str, &str)]) -> Environment {
    all.iter().map(|(name, value)| (VariableName::new(*name).unwrap(), (*value).to_owned())).collect()
}

fn configure(all: &[(&str, &str)]) -> Configure {
    let secret = (SecretName::new("db").unwrap(), SecretValue::new(b"p\0w".to_vec()).unwrap());
    Configure { environment: Some(environment(all)), secrets: Some([secret].into()), ..Configure::default() }
}

#[test]
fn a_booted_machine_is_told_its_environment_and_programs_get_it() {
    let agent = Agent::start_pretended();
    let session = agent.session();
    session.configure(configure(&[("A", "x y"), ("HOME", "/mine"), ("B", "machine")])).unwrap();
    assert_eq!(
        fs::read_to_string(agent.file("root/run/kiln/env")).unwrap(),
        "A=x y\0B=machine\0HOME=/mine\0"
    );
    assert_eq!(fs::read(agent.file("root/run/kiln/secrets/db")).unwrap(), b"p\0w");
    let mut request = sh("echo $A:$B:$HOME:$PATH");
    request.env.insert("B".to_owned(), "exec".to_owned());
    let said = String::from_utf8(run(&session, request).stdout).unwrap();
    assert!(said.starts_with("x y:exec:/mine:/usr/local/sbin:"), "{said}");
    let mut bare = ExecRequest::new(["env"]);
    bare.clear_env = true;
    assert_eq!(run(&session, bare).stdout, b"");
    // What says nothing of it changes nothing, as when only the clock is set.
    session.configure(Configure::default()).unwrap();
    drop(session);
    assert_eq!(stdout_of(&agent.session(), "echo $A"), "x y\n");
}

#[test]
fn an_identity_replaces_the_environment_of_a_former_life() {
    let agent = Agent::start_pretended();
    let session = agent.session();
    session.configure(configure(&[("A", "former")])).unwrap();
    let epoch = Epoch::new("0f8fad5b-d9cb-469f-a165-70867728950e").unwrap();
    let mut identity = Identity::new(epoch, Entropy::new(vec![7; 64]).unwrap());
    identity.environment = Some(environment(&[("B", "own")]));
    session.identify(identity.clone(), soon()).unwrap();
    assert_eq!(stdout_of(&session, "echo $A:$B"), ":own\n");
    identity.environment = Some(Environment::new());
    session.identify(identity, soon()).unwrap();
    assert_eq!(stdout_of(&session, "echo $A:$B"), ":\n");
    assert_eq!(fs::read(agent.file("root/run/kiln/env")).unwrap(), b"");
}

#[test]
fn an_empty_set_makes_nothing_where_nothing_was() {
    let agent = Agent::start_pretended();
    let empty =
        Configure { environment: Some(Environment::new()), secrets: Some([].into()), ..Configure::default() };
    agent.session().configure(empty).unwrap();
    assert!(!agent.file("root/run/kiln").exists());
}

#[test]
fn an_agent_that_would_ignore_it_is_not_sent_it() {
    let agent = Agent::start();
    let lacks = agent.session().configure(configure(&[("A", "x")])).unwrap_err();
    assert!(matches!(lacks, SessionError::Lacks { feature: "environment" }), "{lacks}");
    let agent = Agent::start_pretended();
    let value = "x".repeat(ENVIRONMENT_BYTES_MAX);
    let refused = agent.session().configure(configure(&[("A", &value)])).unwrap_err();
    assert!(matches!(&refused, SessionError::Remote(error) if error.kind == ErrorKind::Invalid), "{refused}");
    assert!(!agent.file("root/run/kiln").exists());
}
