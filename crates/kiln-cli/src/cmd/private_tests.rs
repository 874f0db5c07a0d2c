use super::*;
use kiln_sys::tool::ScratchDir;

fn scratch() -> ScratchDir {
    ScratchDir::new(&std::env::temp_dir()).unwrap()
}

fn own(name: &VariableName) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    match name.as_str() {
        "HOME" => Some("/home/me".into()),
        "LATIN" => Some(OsString::from_vec(vec![0xe9])),
        _ => None,
    }
}

fn options(env: &[&str], env_file: &[&Path], secret: &[&str]) -> PrivateOptions {
    PrivateOptions {
        env: env.iter().map(|text| text.parse().unwrap()).collect(),
        env_file: env_file.iter().map(|path| path.to_path_buf()).collect(),
        secret: secret.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn variables(options: &PrivateOptions) -> Result<Vec<(String, String)>, String> {
    let found = options.environment(own);
    let found = found.map_err(|error| kiln_core::text::chain(&error))?;
    Ok(found.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn variables_are_set_or_taken_over() {
    let given = options(&["A=1=2 ", "EMPTY=", "HOME"], &[], &[]);
    assert_eq!(variables(&given).unwrap(), pairs(&[("A", "1=2 "), ("EMPTY", ""), ("HOME", "/home/me")]));
    let refused = |text: &str| variables(&options(&[text], &[], &[])).unwrap_err();
    assert_eq!(refused("NONE"), "--env gives `NONE` no value, and kiln's own environment has none");
    assert_eq!(refused("LATIN"), "--env: the value of `LATIN` is not UTF-8");
    for text in ["A-B=hunter2", "=hunter2", "1A=hunter2"] {
        let error = refused(text);
        assert!(error.starts_with("--env names no variable: ") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_file_of_variables_is_read_as_docker_does() {
    let dir = scratch();
    let file = dir.path().join("vars");
    std::fs::write(&file, "\u{feff}# comment\n\n  A=x # no comment\r\n\tB= \"y\" \nHOME\nC=c\n").unwrap();
    // What is said for one machine goes over what is said for many.
    let found = variables(&options(&["D=d", "C="], &[&file], &[])).unwrap();
    assert_eq!(
        found,
        pairs(&[("A", "x # no comment"), ("B", " \"y\" "), ("C", ""), ("D", "d"), ("HOME", "/home/me")])
    );
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line_and_no_value() {
    let dir = scratch();
    let file = dir.path().join("vars");
    let refused = |text: &[u8], env: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let error = variables(&options(env, &[&file], &[])).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        error.replace(&file.display().to_string(), "FILE")
    };
    assert!(refused(b"A=1\n\nB C=hunter2\n", &[]).starts_with("FILE line 3 names no variable: "));
    assert_eq!(
        refused(b"#\nNONE\n", &[]),
        "FILE line 2 gives `NONE` no value, and kiln's own environment has none"
    );
    assert_eq!(
        refused(b"A=hunter2\nA=hunter2\n", &[]),
        "variable `A` is given twice: by FILE line 1 and by FILE line 2"
    );
    assert_eq!(
        refused(b"", &["A=hunter2", "A=hunter2"]),
        "variable `A` is given twice: by --env and by --env"
    );
    assert_eq!(refused(b"A=hunter2\xff\n", &[]), "FILE is not UTF-8");
    assert_eq!(refused(&vec![b'#'; ENV_FILE_BYTES_MAX + 1], &[]), "cannot read FILE: more than 65536 bytes");
    std::fs::write(&file, vec![b'#'; ENV_FILE_BYTES_MAX]).unwrap();
    assert_eq!(variables(&options(&[], &[&file], &[])).unwrap(), []);
}

#[test]
fn a_secret_has_two_forms() {
    let secret = |text: &str| text.parse::<Secret>().map_err(|error| error.to_string());
    let key = |source| Secret { name: "key".parse().unwrap(), source };
    let file = Source::File("/a=b".into());
    for text in ["key=/a=b", "id=key,src=/a=b", "source=/a=b,type=file,id=key"] {
        assert_eq!(secret(text), Ok(key(file.clone())), "{text}");
    }
    assert_eq!(secret("key=-"), Ok(key(Source::Stdin)));
    assert_eq!(secret("id=key,src=-"), Ok(key(Source::Stdin)));
    let form = "not NAME=FILE, and not id=NAME,src=FILE";
    for text in ["", "key", "key=", "id=key", "src=x", "id=key,src=", "id=key,id=b,src=x", "id=key,x"] {
        assert_eq!(secret(text).unwrap_err(), form, "{text:?}");
    }
    assert_eq!(secret("id=key,env=A,src=x").unwrap_err(), "`env` is neither `id` nor `src`");
    for text in ["../x=f", "=f", "id=.x,src=f", "type=env,id=a,src=b"] {
        assert!(secret(text).is_err(), "{text:?}");
    }
}

#[test]
fn secrets_are_read_whole_within_their_limit() {
    let dir = scratch();
    let file = dir.path().join("key");
    std::fs::write(&file, b"\0\xffline\n").unwrap();
    let text = format!("key={}", file.display());
    let read = |secret: &[&str]| {
        options(&[], &[], secret).secrets(true).map_err(|error| kiln_core::text::chain(&error))
    };
    let secrets = read(&[&text]).unwrap();
    assert_eq!(secrets.values().next().unwrap().bytes(), b"\0\xffline\n");
    assert_eq!(read(&[&text, &text]).unwrap_err(), "secret `key` is given twice");
    assert_eq!(read(&["a=-"]).unwrap_err(), "secret `a` takes standard input, which -i hands on");
    assert_eq!(
        read(&["a=-", "b=-"]).unwrap_err(),
        "standard input can be one secret, and `a` and `b` want it"
    );
    assert!(read(&["a=/no/such/file"]).unwrap_err().starts_with("cannot open /no/such/file"));
    std::fs::write(&file, vec![7; SECRETS_BYTES_MAX + 1]).unwrap();
    assert!(read(&[&text]).unwrap_err().ends_with("more than 16384 bytes"));
}

#[test]
fn options_do_not_show_a_value() {
    let shown = format!("{:?}", options(&["A=hunter2"], &[], &[]));
    assert!(shown.contains("Variable(A)") && !shown.contains("hunter2"), "{shown}");
}
