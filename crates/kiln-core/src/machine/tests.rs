use super::*;

#[test]
fn forwards_are_two_ports() {
    assert_eq!("8080:80".parse::<Forward>().unwrap(), Forward { host: 8080, guest: 80 });
    for text in ["", "80", "0:80", "80:0", "70000:1", "a:b", "1:2:3", "+1:2", " 1:2"] {
        assert!(text.parse::<Forward>().is_err(), "{text}");
    }
}

#[test]
fn a_paused_machine_is_written_as_a_running_one_with_a_time() {
    let paused = MachineStatus { phase: Phase::Paused, paused_unix_ms: Some(7), ..MachineStatus::created() };
    let json = serde_json::to_value(&paused).unwrap();
    assert_eq!((json["phase"].as_str(), json["paused_unix_ms"].as_u64()), (Some("running"), Some(7)));
    assert_eq!(serde_json::from_value::<MachineStatus>(json).unwrap(), paused);
    let running = MachineStatus { phase: Phase::Running, ..paused.clone() };
    let json = serde_json::to_value(&running).unwrap();
    assert_eq!(json.get("paused_unix_ms"), None);
    assert_eq!(serde_json::from_value::<MachineStatus>(json).unwrap().phase, Phase::Running);
}

#[test]
fn a_status_of_before_and_a_cause_of_later_are_read() {
    let old = r#"{"version":1,"phase":"stopped","end":{"cause":"requested"}}"#;
    let status: MachineStatus = serde_json::from_str(old).unwrap();
    assert_eq!((status.phase, status.restarts, status.paused_unix_ms), (Phase::Stopped, 0, None));
    let new = r#"{"version":1,"phase":"failed","end":{"cause":"eaten_by_a_bear","bear":"brown"}}"#;
    let status: MachineStatus = serde_json::from_str(new).unwrap();
    assert_eq!(status.end, Some(EndCause::Other));
    assert!(serde_json::from_str::<MachineStatus>(r#"{"version":1,"phase":"eaten"}"#).is_err());
}

#[test]
fn a_suspended_machine_is_written_as_a_stopped_one_with_a_time() {
    let status =
        MachineStatus { phase: Phase::Suspended, suspended_unix_ms: Some(7), ..MachineStatus::created() };
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!((json["phase"].as_str(), json["suspended_unix_ms"].as_u64()), (Some("stopped"), Some(7)));
    assert_eq!(serde_json::from_value::<MachineStatus>(json).unwrap(), status);
    // Whoever starts it without knowing of a suspension writes a status without the time.
    for phase in [Phase::Created, Phase::Starting, Phase::Running, Phase::Stopped, Phase::Failed] {
        let json = serde_json::to_value(MachineStatus { phase, ..status.clone() }).unwrap();
        assert_eq!(json.get("suspended_unix_ms"), None);
        assert_eq!(serde_json::from_value::<MachineStatus>(json).unwrap().phase, phase);
    }
    let both = r#"{"version":1,"phase":"running","suspended_unix_ms":7}"#;
    let both: MachineStatus = serde_json::from_str(both).unwrap();
    assert_eq!((both.phase, both.suspended_unix_ms), (Phase::Running, None));
}
