//! A TCP link between two peers that tests can break: stall it, cut it.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use pointsman::demo::Port;

/// How often a stalled or ended link looks at its state.
const TICK: Duration = Duration::from_millis(5);
const BUFFER: usize = 16 * 1024;

/// Forwards connections from [`Link::address`] to a target. Ends with its owner.
pub struct Link {
    port: Port,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    ended: AtomicBool,
    refusing: AtomicBool,
    /// New connections are made, and nothing passes on them.
    holding: AtomicBool,
    held: AtomicU64,
    stalled: AtomicBool,
    refused: AtomicU64,
    /// How much later everything arrives, in milliseconds.
    late: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Link {
    pub fn to(target: &str) -> Self {
        let target: SocketAddr = target.parse().expect("an address of this machine");
        let (port, listener) = Port::listen().expect("ports are to be had");
        listener.set_nonblocking(true).expect("listeners can");
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || accept(&listener, target, &shared));
        Self { port, state }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Nothing passes any more, and nobody is told: a partition.
    pub fn stall(&self) {
        self.state.stalled.store(true, SeqCst);
    }

    /// Ends [`Link::stall`]; what was held back passes now.
    pub fn resume(&self) {
        self.state.stalled.store(false, SeqCst);
    }

    /// Nothing passes on connections that are made from now on, until [`Link::let_in`].
    pub fn hold_new(&self) {
        self.state.holding.store(true, SeqCst);
    }

    /// How many connections were held so far.
    pub fn held(&self) -> u64 {
        self.state.held.load(SeqCst)
    }

    pub fn let_in(&self) {
        self.state.holding.store(false, SeqCst);
    }

    /// Puts the peers far apart: whatever is sent arrives so much later.
    pub fn delay(&self, by: Duration) {
        self.state.late.store(by.as_millis().try_into().expect("minutes at most"), SeqCst);
    }

    /// Breaks all connections; new ones may be made.
    pub fn cut(&self) {
        for stream in self.state.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends new connections at once, until [`Link::mend`]; those that are open stay.
    pub fn refuse(&self) {
        self.state.refusing.store(true, SeqCst);
    }

    /// How many connections were ended at once so far.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(SeqCst)
    }

    /// Breaks all connections and ends new ones at once, until [`Link::mend`].
    pub fn break_down(&self) {
        self.state.refusing.store(true, SeqCst);
        self.cut();
    }

    pub fn mend(&self) {
        self.state.refusing.store(false, SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.ended.store(true, SeqCst);
        self.cut();
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, state: &Arc<State>) {
    while !state.ended.load(SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        if state.refusing.load(SeqCst) {
            state.refused.fetch_add(1, SeqCst);
            continue;
        }
        let Ok(server) = TcpStream::connect(target) else { continue };
        let _ = client.set_nonblocking(false);
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
        }
        let (Ok(to_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { continue };
        state.open.lock().extend(client.try_clone());
        let held = state.holding.load(SeqCst);
        state.held.fetch_add(held.into(), SeqCst);
        let (up, down) = (state.clone(), state.clone());
        thread::spawn(move || {
            while held && up.holding.load(SeqCst) && !up.ended.load(SeqCst) {
                thread::sleep(TICK);
            }
            forward(client, to_server, &up);
        });
        thread::spawn(move || forward(server, to_client, &down));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while state.stalled.load(SeqCst) && !state.ended.load(SeqCst) {
            thread::sleep(TICK);
        }
        thread::sleep(Duration::from_millis(state.late.load(SeqCst)));
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // An end of file passes too, but a partition hides it.
    while state.stalled.load(SeqCst) && !state.ended.load(SeqCst) {
        thread::sleep(TICK);
    }
    let _ = to.shutdown(Shutdown::Write);
}
