//! Connections whose waits end with the work, and names that lead to public addresses only. Both are parts of ureq that
//! its versions of one number may change.

use super::redirect::is_public;
use kiln_sys::Cancel;
use std::io;
use std::time::Duration;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector,
    Transport,
};
use ureq::{Agent, Error};

/// The longest wait for bytes between two looks at whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// Makes an agent whose connections end with `cancel`. A guarded one connects to public addresses only.
pub(super) fn agent(config: Config, cancel: &Cancel, guarded: bool) -> Agent {
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(Watch(cancel.clone()))
            .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, Names { inner: DefaultResolver::default(), guarded })
}

/// What the guard says of a name; it is told apart by [`is_guarded`].
#[derive(Debug, thiserror::Error)]
#[error("a private address")]
struct Guarded;

/// Returns whether an error is the guard's.
pub(super) fn is_guarded(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Guarded>()))
}

#[derive(Debug)]
struct Names {
    inner: DefaultResolver,
    guarded: bool,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        // The very addresses that are connected to: a name that leads elsewhere the next time gains nothing.
        if self.guarded && !found.iter().all(|address| is_public(address.ip())) {
            return Err(Error::Io(io::Error::other(Guarded)));
        }
        Ok(found)
    }
}

#[derive(Debug)]
struct Watch(Cancel);

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Watched<In>>, Error> {
        Ok(chained.map(|inner| Watched { inner, cancel: self.0.clone() }))
    }
}

#[derive(Debug)]
struct Watched<T> {
    inner: T,
    cancel: Cancel,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.cancel.check().map_err(|cancelled| Error::Io(io::Error::other(cancelled)))?;
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let whole = timeout.for_read();
        let mut left: Duration = *whole.after;
        loop {
            self.cancel.check().map_err(|cancelled| Error::Io(io::Error::other(cancelled)))?;
            let look = NextTimeout { after: LOOK.min(left).into(), per_read: None, ..whole };
            match self.inner.await_input(look) {
                Err(Error::Timeout(_)) if left > LOOK => left -= LOOK,
                Err(Error::Timeout(_)) => return Err(Error::Timeout(whole.reason)),
                other => return other,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
