use std::{
    io::{ErrorKind, Read},
    net, thread,
};

use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    runtime::Builder,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::stream::{Outlet, Stream};

/// Runs `scenario` on a worker, once as the system has it and once without io_uring.
fn on_workers(scenario: impl AsyncFn() + Copy + Send + 'static) {
    for together in [true, false] {
        let run = move || {
            keep();
            if !together {
                FLIGHTS.with_borrow_mut(|flights| forget_ring(flights.as_mut().unwrap()));
            }
            let runtime = Builder::new_current_thread().enable_all().on_thread_park(leave).build().unwrap();
            runtime.block_on(scenario());
        };
        thread::spawn(run).join().expect("the scenario holds");
    }
}

#[cfg(target_os = "linux")]
fn forget_ring(flights: &mut Flights) {
    assert!(flights.ring.take().is_some(), "tests run where there is io_uring");
}

#[cfg(not(target_os = "linux"))]
fn forget_ring(_: &mut Flights) {}

async fn pair() -> (Stream, net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let theirs = listener.accept().await.unwrap().0.into_std().unwrap();
    ours.writable().await.unwrap();
    (Stream::plain(ours), theirs)
}

/// The same with the two ends of a TLS session.
async fn within_tls() -> (Stream, Stream) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let theirs = listener.accept().await.unwrap().0;
    let name = ServerName::try_from("localhost").unwrap();
    let (ours, theirs) = tokio::join!(
        TlsConnector::from(Arc::new(client)).connect(name, ours),
        TlsAcceptor::from(Arc::new(server)).accept(theirs),
    );
    (Stream::tls(ours.unwrap()), Stream::tls(theirs.unwrap()))
}

/// The worker has nothing to do for a moment.
async fn sleep() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// What has arrived so far.
fn arrived(mut theirs: &net::TcpStream) -> String {
    let mut text = [0; 4096];
    match theirs.read(&mut text) {
        Ok(count) => String::from_utf8_lossy(&text[..count]).into_owned(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            String::new()
        }
    }
}

/// All that comes until the other side ends, on a thread of its own.
fn listen(mut theirs: net::TcpStream) -> thread::JoinHandle<Vec<u8>> {
    theirs.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        all
    })
}

/// Writes until the kernel takes no more.
fn fill(ours: &Stream) -> usize {
    let mut filled = 0;
    loop {
        match ours.write_now(&[b'.'; 4096]).unwrap() {
            0 => return filled,
            count => filled += count,
        }
    }
}

fn is_left(stream: &Stream) -> bool {
    matches!(stream, Stream::Plain(socket) if socket.stage() == Stage::Left)
}

#[test]
fn what_was_left_goes_out_when_the_worker_sleeps() {
    on_workers(async || {
        let pairs = [pair().await, pair().await, pair().await];
        for (index, (ours, _)) in pairs.iter().enumerate() {
            assert!(ours.entrust(format!("flight {index}").as_bytes()));
        }
        assert!(pairs.iter().all(|(_, theirs)| arrived(theirs).is_empty()));
        sleep().await;
        for (index, (ours, theirs)) in pairs.iter().enumerate() {
            assert_eq!(arrived(theirs), format!("flight {index}"));
            assert!(ours.entrust(b"another"));
        }
        sleep().await;
        assert!(pairs.iter().all(|(_, theirs)| arrived(theirs) == "another"));
    });
}

#[test]
fn nobody_waits_for_more_than_a_batch() {
    on_workers(async || {
        let mut pairs = Vec::new();
        for _ in 0..BATCH {
            pairs.push(pair().await);
        }
        for (ours, _) in &pairs {
            assert!(arrived(&pairs[0].1).is_empty());
            assert!(ours.entrust(b"flight"));
        }
        assert!(pairs.iter().all(|(_, theirs)| arrived(theirs) == "flight"));
    });
}

#[test]
fn who_streams_lets_others_leave() {
    on_workers(async || {
        let ((ours, theirs), (streaming, _its)) = (pair().await, pair().await);
        assert!(ours.entrust(b"flight"));
        for _ in 1..BATCH {
            assert!(arrived(&theirs).is_empty());
            assert_eq!(streaming.write_now(&[b'.'; 64]).unwrap(), 64);
        }
        assert_eq!(arrived(&theirs), "flight");
    });
}

#[test]
fn who_streams_within_tls_lets_others_leave() {
    on_workers(async || {
        let ((ours, theirs), (mut streaming, _its)) = (pair().await, within_tls().await);
        assert!(ours.entrust(b"flight"));
        for _ in 1..BATCH {
            assert!(arrived(&theirs).is_empty());
            streaming.write_all(&[b'.'; 64]).await.unwrap();
        }
        assert_eq!(arrived(&theirs), "flight");
    });
}

#[test]
fn what_is_long_or_comes_behind_is_not_left() {
    on_workers(async || {
        let (ours, theirs) = pair().await;
        assert!(!ours.entrust(&[b'.'; SHORT + 1]));
        assert!(ours.entrust(b"one "));
        assert!(!ours.entrust(b"two "), "the kernel could take the second and not the first");
        assert_eq!(ours.write_now(b"two ").unwrap(), 4);
        assert_eq!(arrived(&theirs), "one two ");
    });
}

#[test]
fn where_nobody_lets_them_leave_none_are_kept() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = pair().await;
        assert!(!ours.entrust(b"flight"));
        assert!(arrived(&theirs).is_empty());
    });
}

#[test]
fn the_kernel_gets_the_rest_as_it_has_room() {
    on_workers(async || {
        let ((mut ours, theirs), (other, its)) = (pair().await, pair().await);
        let filled = fill(&ours);
        assert!(ours.entrust(&[b'r'; SHORT]) && other.entrust(b"flight"));
        sleep().await;
        assert_eq!(arrived(&its), "flight");
        assert!(is_left(&ours) && !ours.is_movable() && !ours.entrust(b"behind"));
        assert_eq!(ours.write_now(b"behind").unwrap(), 0);
        let all = listen(theirs);
        ours.write_all(b"behind").await.unwrap();
        assert!(!is_left(&ours));
        sleep().await;
        assert!(ours.is_movable() && ours.entrust(b" all"));
        sleep().await;
        drop(ours);
        let all = all.join().unwrap();
        let expected = [&vec![b'.'; filled][..], &[b'r'; SHORT], b"behind all"].concat();
        assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
    });
}

#[test]
fn a_session_may_leave_at_once() {
    on_workers(async || {
        let ((ours, theirs), (other, its)) = (pair().await, pair().await);
        let filled = fill(&other);
        assert!(ours.entrust(b"farewell") && other.entrust(b"farewell"));
        drop((ours, other));
        sleep().await;
        assert_eq!(arrived(&theirs), "farewell");
        let all = listen(its);
        while !all.is_finished() {
            sleep().await;
        }
        assert_eq!(all.join().unwrap().len(), filled + b"farewell".len());
    });
}

#[test]
fn a_rest_is_not_written_for_ever() {
    on_workers(async || {
        let (ours, theirs) = pair().await;
        let filled = fill(&ours);
        assert!(ours.entrust(b"never read"));
        sleep().await;
        drop(ours);
        tokio::time::sleep(2 * LINGER).await;
        assert_eq!(listen(theirs).join().unwrap().len(), filled);
    });
}

#[test]
fn what_the_kernel_refuses_counts_as_not_sent() {
    on_workers(async || {
        let ((ours, theirs), (other, its)) = (pair().await, pair().await);
        SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        assert!(ours.entrust(b"flight") && other.entrust(b"flight"));
        assert!(!ours.was_refused());
        sleep().await;
        assert!(ours.was_refused() && !other.was_refused());
        assert_eq!(arrived(&its), "flight");
        assert!(!ours.entrust(b"another"));
        ours.write_now(b"another").unwrap_err();
    });
}

#[test]
fn a_connection_is_moved_without_what_was_left() {
    on_workers(async || {
        let (mut ours, theirs) = pair().await;
        assert!(ours.entrust(b"flight"));
        ours.migrate().unwrap();
        assert_eq!(arrived(&theirs), "flight");
        ours.write_all(b"another").await.unwrap();
        assert_eq!(arrived(&theirs), "another");
    });
}
