//! What goes wrong on the way from a registry, and who is told who asks.

use super::super::make::{Tar, digest, layout, merged};
use super::{Act, Fake, Puller, Reply, Request, Server, challenge, is_blob, large, token_reply, with_body};
use kiln_source::download::{CONNECTIONS_MAX, Progress, TRIES_MAX};
use kiln_source::oci::{Fetching, OciError, fetch_layers};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

/// What kiln waits before another try that nobody asked for, by the clock of the tests.
const AGAIN: Duration = Duration::from_millis(100);
/// "me:secret"
const BASIC: &str = "Basic bWU6c2VjcmV0";

#[test]
fn a_layer_that_broke_off_is_gone_on_with() {
    let (made, layer) = large();
    let id = digest(&layer);
    for ranges in [true, false] {
        let (blob, whole) = (id.clone(), layer.clone());
        let fake = Fake::start(&made, move |request, reply| match is_blob(request, &blob) {
            true if request.range.is_none() => reply.act(Act::Cut(100_000)),
            true if !ranges => with_body(&whole),
            _ => reply,
        });
        let puller = Puller::new();
        merged(&puller.pull(&fake.name()).unwrap()).unwrap();
        let seen = fake.seen(&id);
        let froms: Vec<usize> = seen.iter().map(Request::from).collect();
        assert_eq!(froms, [0, 100_000]);
        // The digest is the name of the version: there is nothing to compare.
        assert_eq!(seen[1].if_range, None);
        assert_eq!((puller.waits.seen(), puller.left()), (vec![AGAIN], Vec::new()));
    }
}

#[test]
fn what_came_of_a_layer_is_gone_on_with_in_another_repository() {
    let (made, layer) = large();
    let id = digest(&layer);
    let blob = id.clone();
    let first = Fake::start(&made, move |request, reply| match is_blob(request, &blob) {
        true if request.range.is_none() => reply.act(Act::Cut(100_000)),
        true => Reply::status(404),
        false => reply,
    });
    let second = Fake::start(&made, |_, reply| reply);
    let puller = Puller::new();
    assert!(matches!(puller.pull(&first.name()), Err(OciError::NotFound { .. })));
    puller.pull(&second.name()).unwrap();
    assert_eq!(second.seen(&id).iter().map(Request::from).collect::<Vec<_>>(), [100_000]);
}

#[test]
fn a_registry_that_has_too_much_to_do_is_asked_again_when_it_says() {
    let (made, layer) = large();
    let id = digest(&layer);
    // A manifest, and a layer.
    for path in ["/v2/app/manifests/v1".to_owned(), format!("/v2/app/blobs/{id}")] {
        let asked = AtomicUsize::new(0);
        let fake = Fake::start(&made, move |request, reply| {
            if request.path == path && asked.fetch_add(1, Ordering::SeqCst) == 0 {
                Reply::status(429).with("Retry-After: 7")
            } else {
                reply
            }
        });
        let puller = Puller::new();
        puller.pull(&fake.name()).unwrap();
        assert_eq!(puller.waits.seen(), [Duration::from_secs(7)]);
    }
    let fake = Fake::start(&made, |_, _| Reply::status(500));
    let error = Puller::new().pull(&fake.name()).unwrap_err();
    assert_eq!(error.to_string(), format!("http://{}/v2/app/manifests/v1 cannot be had", fake.host()));
    assert_eq!(fake.0.seen().len(), TRIES_MAX as usize);
}

#[test]
fn a_token_that_expires_on_the_way_is_renewed_once_for_all_connections() {
    let (made, layer) = large();
    let blob = digest(&layer);
    let (given, oldest) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(1));
    let (count, others) = (Arc::clone(&given), Barrier::new(CONNECTIONS_MAX - 1));
    let gate = crate::download::server::Gate::default();
    let fake = Fake::start(&made, move |request, reply| {
        if request.path.starts_with("/token") {
            return token_reply(&(given.fetch_add(1, Ordering::SeqCst) + 1).to_string());
        }
        let token = request.authorization.as_deref().and_then(|header| header.strip_prefix("Bearer "));
        let token: usize = token.map_or(0, |token| token.parse().unwrap());
        match is_blob(request, &blob) {
            _ if token < oldest.load(Ordering::SeqCst) => challenge(request),
            true if request.range.is_none() => reply.act(Act::Gate(1000, gate.clone())),
            // The second token is for the layers. All others who came with it are told at once.
            true if token == 2 => {
                others.wait();
                oldest.store(3, Ordering::SeqCst);
                gate.open();
                challenge(request)
            }
            _ => reply,
        }
    });
    let mut puller = Puller::new();
    puller.ranges_bytes_min = 100_000;
    merged(&puller.pull(&fake.name()).unwrap()).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 3);
    assert!(puller.waits.seen().is_empty());
}

#[test]
fn who_asks_is_told_to_the_registry_alone() {
    let (made, layer) = large();
    let id = digest(&layer);
    // A host of storage, and one that would like to know.
    for curious in [false, true] {
        let (bytes, blob) = (layer.clone(), id.clone());
        let storage = Server::start(move |request| match request.authorization {
            None if curious => challenge(request),
            _ => Reply::file(request, &bytes, "\"1\""),
        });
        let there = format!("Location: http://{}/x?sig=1", storage.address());
        let fake = Fake::start(&made, move |request, reply| match request.authorization.as_deref() {
            Some(BASIC) if is_blob(request, &blob) => Reply::status(307).with(&there),
            Some(BASIC) => reply,
            _ => Reply::status(401).with("WWW-Authenticate: Basic realm=\"here\""),
        });
        let puller =
            Puller::configured(&format!(r#"{{"auths":{{"{}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#, fake.host()));
        let pulled = puller.pull(&fake.name());
        match pulled {
            Ok(_) => assert!(!curious),
            Err(error) => assert!(curious && matches!(error, OciError::Denied { .. }), "{error:?}"),
        }
        let seen = storage.seen();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].authorization.is_none() && seen[0].path == "/x?sig=1", "{seen:?}");
        assert!(fake.seen(&id).iter().any(|request| request.authorization.as_deref() == Some(BASIC)));
    }
}

#[test]
fn a_refusal_is_told_at_once() {
    let (made, _) = large();
    let fake = Fake::start(&made, |_, _| Reply::status(403));
    assert!(matches!(Puller::new().pull(&fake.name()), Err(OciError::Denied { .. })));
    assert_eq!(fake.0.seen().len(), 1);
    // Credentials that were refused are not said twice.
    let fake = Fake::start(&made, |_, _| Reply::status(401).with("WWW-Authenticate: Basic realm=\"here\""));
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#, fake.host());
    assert!(matches!(Puller::configured(&auths).pull(&fake.name()), Err(OciError::Denied { .. })));
    let said: Vec<_> = fake.0.seen().into_iter().map(|request| request.authorization).collect();
    assert_eq!(said, [None, Some(BASIC.to_owned())]);
}

#[test]
fn a_token_for_a_token_is_asked_for_by_a_form_which_no_redirection_takes_along() {
    let (made, _) = large();
    let tokens = |answer: Reply| {
        let fake = Fake::start(&made, move |request, reply| match request.authorization.as_deref() {
            _ if request.path.starts_with("/token") => answer.clone(),
            Some("Bearer good") => reply,
            _ => challenge(request),
        });
        let text = format!(r#"{{"auths":{{"{}":{{"identitytoken":"a+b&c"}}}}}}"#, fake.host());
        (Puller::configured(&text).pull(&fake.name()), fake)
    };
    let (pulled, fake) = tokens(token_reply("good"));
    pulled.unwrap();
    let asked = fake.0.seen().into_iter().find(|request| request.path == "/token").unwrap();
    let form = "scope=repository%3Aapp%3Apull&service=own&grant_type=refresh_token&refresh_token=a%2Bb%26c&client_id=kiln";
    assert_eq!((asked.form.as_deref(), asked.authorization), (Some(form), None));
    let other = Server::start(|_| token_reply("good"));
    let (pulled, _) = tokens(Reply::status(307).with(&format!("Location: {}", other.url("/token"))));
    assert!(matches!(pulled, Err(OciError::Registry { .. })), "{pulled:?}");
    assert!(other.seen().is_empty());
}

#[test]
fn a_token_server_that_fails_for_now_is_asked_again() {
    let (made, _) = large();
    let asked = AtomicUsize::new(0);
    let fake = Fake::start(&made, move |request, reply| {
        if request.path.starts_with("/token") {
            let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            return if first { Reply::status(503) } else { token_reply("good") };
        }
        if request.authorization.is_some() { reply } else { challenge(request) }
    });
    let puller = Puller::new();
    puller.pull(&fake.name()).unwrap();
    assert_eq!(puller.waits.seen(), [AGAIN]);
    // One that is not there says nothing of the image.
    let fake = Fake::start(&made, |request, _| match request.path.starts_with("/token") {
        true => Reply::status(404),
        false => challenge(request),
    });
    let error = Puller::new().pull(&fake.name()).unwrap_err();
    assert_eq!(error.to_string(), format!("http://{}/token cannot be had", fake.host()));
}

#[test]
fn bytes_are_told_of_all_layers_together() {
    let made = layout(&[Tar::new().file("a", "1").end(), Tar::new().file("b", "2").end()]);
    let fake = Fake::start(&made, |_, reply| reply);
    let puller = Puller::new();
    let (_, image) = puller.resolve(&fake.name(), None).unwrap();
    let size: u64 = image.layers.iter().map(|layer| layer.blob.place.len).sum();
    let told = Mutex::new((0, Vec::new()));
    let (reference, cache) = (fake.name().parse().unwrap(), puller.cache());
    puller
        .asking(|options| {
            fetch_layers(&reference, &image.layers, &cache, options, &|event| {
                let mut told = told.lock().unwrap();
                match event {
                    Fetching::Layer { digest, .. } => told.1.push(digest.clone()),
                    Fetching::Download(Progress::Bytes { have, total }) => {
                        assert_eq!(total, Some(size));
                        told.0 = told.0.max(have);
                    }
                    other => panic!("{other:?}"),
                }
            })
        })
        .unwrap();
    let told = told.into_inner().unwrap();
    assert_eq!((told.0, told.1.len()), (size, 2));
}
