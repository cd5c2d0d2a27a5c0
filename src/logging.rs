//! What is written to standard error: `[log]` made to work.

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{Log, LogFormat};

/// Changes the level of a running process.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Applies `log.level`.
    ///
    /// # Errors
    /// When the level is no filter (a loaded configuration's is one).
    pub fn set(&self, log: &Log) -> Result<(), LevelError> {
        self.0.reload(filter(log)?).map_err(|_| LevelError(log.level.clone()))
    }
}

/// `log.level` is not a filter.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a log level")]
pub struct LevelError(String);

/// Starts logging to standard error, for the whole process; the first call wins.
///
/// # Errors
/// When the level is no filter (a loaded configuration's is one).
pub fn init(log: &Log) -> Result<LogLevel, LevelError> {
    let (subscriber, level) = subscriber(log, io::stderr, io::stderr().is_terminal())?;
    if subscriber.try_init().is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(level)
}

fn filter(log: &Log) -> Result<EnvFilter, LevelError> {
    // The parser logs what it parses, literals and all: never, whatever the level.
    let quiet = format!("{},sqlparser=off", log.level);
    EnvFilter::builder().parse(quiet).map_err(|_| LevelError(log.level.clone()))
}

fn subscriber<W>(
    log: &Log,
    writer: W,
    colours: bool,
) -> Result<(impl Subscriber + Send + Sync, LogLevel), LevelError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(log)?);
    let lines = match log.format {
        LogFormat::Text => fmt::layer().with_writer(OneLine { writer, colours }).with_ansi(colours).boxed(),
        // The message and its fields side by side: what log collectors index.
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
    };
    Ok((Registry::default().with(filter).with(lines), LogLevel(handle)))
}

/// Keeps an event on its line: texts of clients and servers are in it, and none of them may write
/// lines that look like ours. JSON does so by itself.
#[derive(Clone, Copy, Debug)]
struct OneLine<W> {
    writer: W,
    /// Escapes are the formatter's own; those of others it has taken out.
    colours: bool,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        OneLine { writer: self.writer.make_writer(), colours: self.colours }
    }
}

/// Every event comes in one piece, with its line's end.
impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        if line.iter().any(|byte| byte.is_ascii_control()) {
            let mut tame = self.tame(&String::from_utf8_lossy(line));
            tame.push('\n');
            self.writer.write_all(tame.as_bytes())?;
        } else {
            self.writer.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl<W> OneLine<W> {
    fn tame(&self, line: &str) -> String {
        let mut tame = String::with_capacity(line.len() + 16);
        for c in line.chars() {
            match c {
                '\t' => tame.push(c),
                '\x1b' if self.colours => tame.push(c),
                c if c.is_control() => tame.extend(c.escape_default()),
                c => tame.push(c),
            }
        }
        tame
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(log: &Log, work: impl FnOnce(&LogLevel)) -> String {
        let lines = Lines::default();
        let make = lines.clone();
        let (subscriber, level) = subscriber(log, move || make.clone(), false).expect("a good level");
        tracing::subscriber::with_default(subscriber, || work(&level));
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).expect("logs are text")
    }

    fn log(format: LogFormat, level: &str) -> Log {
        Log { format, level: level.to_owned(), statements_over: None }
    }

    #[test]
    fn json_lines_hold_message_and_fields() {
        let text =
            written(&log(LogFormat::Json, "info"), |_| tracing::info!(node = "db1:5432", "node is down"));

        let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one object per line");
        assert_eq!(
            (&line["message"], &line["node"], &line["level"]),
            (&"node is down".into(), &"db1:5432".into(), &"INFO".into())
        );
    }

    #[test]
    fn the_level_can_change_while_running() {
        let quiet = log(LogFormat::Text, "warn");

        let text = written(&quiet, |level| {
            tracing::info!("unheard");
            level.set(&log(LogFormat::Text, "info")).expect("a good level");
            tracing::info!("heard");
        });

        assert!(text.contains("heard") && !text.contains("unheard"), "{text}");
    }

    #[test]
    fn whatever_a_text_holds_an_event_is_one_line() {
        let forged = "x\r\n2026-01-01T00:00:00Z  WARN pointsman: forged\u{1b}[31m";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = written(&log(format, "info"), |_| {
                tracing::info!(value = %forged, "refused: {forged}");
                tracing::info!("next");
            });

            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.contains(['\r', '\x1b']), "{text:?}");
        }
    }

    #[test]
    fn a_level_that_is_no_filter_is_refused() {
        assert!(init(&log(LogFormat::Text, "loud=3=4")).is_err());
    }
}
