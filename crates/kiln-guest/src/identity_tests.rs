use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::hook::{Fact, HookCause, HookFailure, HookRun, HookStage};
use crate::limits::{
    ENVIRONMENT_BYTES_MAX, FACTS_BYTES_MAX, FRAME_PAYLOAD_MAX, HOOK_TAIL_BYTES_MAX, HOOKS_MAX,
    NOTE_BYTES_MAX, NOTES_MAX, SECRETS_BYTES_MAX, SECRETS_MAX,
};
use crate::message::{Opened, Request, parse_json, plain, plain_tail, to_json};
use crate::secret::SecretValue;
use crate::token::{EventName, HookName, SecretName, VariableName};

const EPOCH: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn minimal() -> Identity {
    Identity::new(Epoch::new(EPOCH).unwrap(), Entropy::new(vec![7; 32]).unwrap())
}

#[test]
fn the_shape_on_the_wire_is_stable() {
    let hex = "07".repeat(32);
    let text = format!(
        r#"{{"op":"identity","epoch":"{EPOCH}","entropy":"{hex}","network":{{"interface":"eth0","address":"10.0.0.2/24"}}}}"#
    );
    let mut identity = minimal();
    identity.network = Some(IdentityNetwork {
        interface: Some(InterfaceName::new("eth0").unwrap()),
        config: NetworkConfig {
            mac: None,
            address: "10.0.0.2/24".to_owned(),
            gateway: None,
            dns: Vec::new(),
        },
    });
    let parsed: Request = parse_json("open", text.as_bytes()).unwrap();
    assert_eq!(parsed, Request::Identity(Box::new(identity)));
    let report: IdentityReport = parse_json(
        "opened",
        br#"{"parts":[{"part":"entropy","result":"done"},{"part":"clock","result":"not_applicable"},
            {"part":"machine_id","result":"failed","error":{"kind":"permission","message":"m","errno":30}},
            {"part":"hooks","result":"skipped","after":"machine_id"},{"part":"tea","result":"done"}]}"#,
    )
    .unwrap();
    assert_eq!(report.result(Part::Entropy), Some(&PartResult::Done));
    assert_eq!(report.failed().unwrap().part, Part::MachineId);
    assert_eq!(report.result(Part::Unknown), Some(&PartResult::Done));
    assert_eq!(report.result(Part::Network), None);
}

#[test]
fn what_breaks_a_limit_is_refused() {
    let mut identity = minimal();
    assert!(identity.check().is_ok());
    let name = |text: &str| VariableName::new(text).unwrap();
    identity.environment = Some(BTreeMap::from([(name("A"), "x".repeat(ENVIRONMENT_BYTES_MAX))]));
    assert!(identity.check().unwrap_err().message.contains("environment"));
    identity.environment = Some(BTreeMap::from([(name("A"), "top\0secret".to_owned())]));
    let error = identity.check().unwrap_err().message;
    assert!(error.contains("variable A") && !error.contains("secret"), "{error}");
    let secret = |length| SecretValue::new(vec![1; length]).unwrap();
    let mut identity = minimal();
    identity.secrets =
        Some((0..=SECRETS_MAX).map(|n| (SecretName::new(format!("s{n}")).unwrap(), secret(1))).collect());
    assert!(identity.check().is_err());
    identity.secrets = Some(
        (0..3).map(|n| (SecretName::new(format!("s{n}")).unwrap(), secret(SECRETS_BYTES_MAX / 2))).collect(),
    );
    assert!(identity.check().is_err());
    for bad in [
        r#"{"epoch":"E","entropy":"N"}"#,
        r#"{"epoch":"EPOCH","entropy":"00"}"#,
        r#"{"epoch":"EPOCH","entropy":"N","hostname":"a b"}"#,
        r#"{"epoch":"EPOCH","entropy":"N","machine_id":"0"}"#,
        r#"{"epoch":"EPOCH","entropy":"N","secrets":{"../x":"00"}}"#,
        r#"{"epoch":"EPOCH","entropy":"N","secrets":{"x":"0g"}}"#,
        r#"{"epoch":"EPOCH","entropy":"N","environment":{"A=B":"x"}}"#,
        r#"{"epoch":"EPOCH","entropy":"N","network":{"interface":"../x","address":"a"}}"#,
        r#"{"epoch":"EPOCH","entropy":"N","hook_timeout_ms":0}"#,
    ] {
        let text = bad.replace("EPOCH", EPOCH).replace('N', &"00".repeat(32));
        assert!(serde_json::from_str::<Identity>(&text).is_err(), "{text}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let mut identity = minimal();
    identity.environment = Some(BTreeMap::from([(VariableName::new("A").unwrap(), "hunter2".to_owned())]));
    identity.secrets = Some(BTreeMap::from([(
        SecretName::new("s").unwrap(),
        SecretValue::new(b"hunter2".to_vec()).unwrap(),
    )]));
    let shown = format!("{identity:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("0707"), "{shown}");
}

#[test]
fn the_largest_answer_fits_a_frame() {
    // Quotes and line ends are what JSON needs two bytes for.
    let worst = |bytes| plain(&"\"\n\u{1}".repeat(bytes), bytes);
    let tail = || plain_tail("\"\n".repeat(9999).as_bytes(), HOOK_TAIL_BYTES_MAX);
    let hook = HookName::new("h".repeat(128)).unwrap();
    let failed = || PartResult::Failed {
        error: RemoteError {
            errno: Some(-9999),
            ..RemoteError::new(ErrorKind::Permission, worst(NOTE_BYTES_MAX))
        },
    };
    let mut facts = Vec::new();
    let mut bytes = 0;
    while bytes < FACTS_BYTES_MAX {
        let fact = Fact {
            hook: hook.clone(),
            event: EventName::new("e".repeat(64)).unwrap(),
            fields: [("x".to_owned(), "y".repeat(40).into())].into_iter().collect(),
        };
        bytes += to_json(&fact).len() + 1;
        facts.push(fact);
    }
    let report = IdentityReport {
        parts: Part::ALL.map(|part| PartReport { part, result: failed(), elapsed_ms: u64::MAX }).to_vec(),
        clock_offset_ns: Some(i64::MIN),
        interface: Some("i".repeat(15)),
        hooks: HookReport {
            ran: vec![HookRun { hook: hook.clone(), elapsed_ms: u64::MAX }; HOOKS_MAX],
            failure: Some(HookFailure {
                stage: HookStage::PostRestore,
                hook,
                cause: HookCause::NotStarted { reason: worst(NOTE_BYTES_MAX) },
                stdout_tail: tail(),
                stderr_tail: tail(),
            }),
            facts,
            facts_dropped: u32::MAX,
        },
        notes: vec![worst(NOTE_BYTES_MAX); NOTES_MAX],
    };
    let size = to_json(&Opened { identified: Some(report), ..Opened::default() }).len();
    assert!(size < FRAME_PAYLOAD_MAX, "{size}");
}

prop_compose! {
    fn any_identity()(
        entropy in vec(any::<u8>(), 32..=256),
        clock_unix_ns in option::of(any::<u64>()),
        hostname in option::of("[a-zA-Z0-9._-]{1,64}"),
        machine_id in option::of("[0-9a-e]{31}f"),
        network in option::of((option::of("[a-z][a-z0-9]{0,14}"), "[ -~]{0,20}", vec("[ -~]{0,20}", 0..4))),
        ssh_host_keys in any::<bool>(),
        environment in option::of(btree_map("[A-Z_][A-Z0-9_]{0,8}", "\\PC{0,20}", 0..5)),
        secrets in option::of(btree_map("[a-z0-9_][a-z.-]{0,8}", vec(any::<u8>(), 0..40), 0..5)),
        millis in 1_u32..=600_000,
    ) -> Identity {
        Identity {
            epoch: Epoch::new(EPOCH).unwrap(),
            entropy: Entropy::new(entropy).unwrap(),
            clock_unix_ns,
            hostname: hostname.map(|text| Hostname::new(text).unwrap()),
            machine_id: machine_id.map(|text| MachineId::new(text).unwrap()),
            network: network.map(|(interface, address, dns)| IdentityNetwork {
                interface: interface.map(|text| InterfaceName::new(text).unwrap()),
                config: NetworkConfig { mac: None, address, gateway: None, dns },
            }),
            ssh_host_keys,
            environment: environment.map(|map| {
                map.into_iter().map(|(name, value)| (VariableName::new(name).unwrap(), value)).collect()
            }),
            secrets: secrets.map(|map| {
                map.into_iter()
                    .map(|(name, value)| (SecretName::new(name).unwrap(), SecretValue::new(value).unwrap()))
                    .collect()
            }),
            hook_timeout_ms: HookTimeout::try_from(millis).unwrap(),
        }
    }
}

proptest! {
    #[test]
    fn a_request_survives_printing_and_parsing(identity in any_identity()) {
        let request = Request::Identity(Box::new(identity));
        prop_assert_eq!(parse_json::<Request>("open", &to_json(&request)).unwrap(), request);
    }

    #[test]
    fn any_answer_parses_or_is_refused(bytes in vec(any::<u8>(), 0..300)) {
        let _ = parse_json::<Opened>("opened", &bytes);
        let _ = parse_json::<Request>("open", &bytes);
    }
}
