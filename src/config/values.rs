//! How single values of the file are read.

use std::{
    fs,
    io::Read,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use toml::de::DeValue;
use url::Url;
use zeroize::Zeroizing;

use super::{
    Choice, HostPort, PemFile, Secret,
    document::{Cell, Value, nearest},
};

/// More than this is a slip, and would overflow a clock somewhere: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// What the timers can tell apart.
const SHORTEST: Duration = Duration::from_millis(1);
/// The largest file that can be a secret: more is a wrong path.
const SECRET_FILE_LIMIT: u64 = 64 * 1024;

impl<T: Choice> Value for T {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let words = || T::ALL.iter().map(|(word, _)| *word);
        let listed = || words().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let word = cell.text(&format!("one of {}", listed()))?;
        T::from_name(word).or_else(|| match nearest(word, words(), 0.6) {
            Some(near) => cell.fault(format!("{word:?} is none of {}; did you mean \"{near}\"?", listed())),
            None => cell.fault(format!("{word:?} is none of {}", listed())),
        })
    }
}

impl Value for bool {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        cell.value.as_bool().or_else(|| cell.expected("true or false"))
    }
}

impl Value for Arc<str> {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        match cell.text("text")? {
            "" => cell.fault("must not be empty"),
            text if text.contains('\0') => cell.fault("must not contain a zero byte"),
            text => Some(text.into()),
        }
    }
}

/// A count; zero is a count too.
impl Value for usize {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        // Counts of connections, statements and the like: beyond 32 bits it is a slip.
        count_up_to(cell, u32::MAX as usize)
    }
}

/// A count with a bound of its own.
pub(super) fn count_up_to(cell: &Cell<'_>, most: usize) -> Option<usize> {
    let DeValue::Integer(number) = cell.value else {
        return cell.expected("a whole number");
    };
    match usize::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) if number <= most => Some(number),
        _ => cell.fault(format!("must be from 0 to {most}")),
    }
}

impl Value for NonZeroUsize {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        Self::new(usize::read(cell)?).or_else(|| cell.fault("must be at least 1"))
    }
}

impl Value for NonZeroU32 {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        NonZeroUsize::read(cell).map(|number| Self::try_from(number).expect("a count fits 32 bits"))
    }
}

/// Zero turns it off.
impl Value for Option<usize> {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        usize::read(cell).map(|number| Some(number).filter(|&number| number > 0))
    }
}

/// A duration that may be zero.
impl Value for Duration {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        const FORM: &str = "a duration such as \"200ms\", \"10s\" or \"5m\"";
        let text = match cell.value {
            DeValue::String(text) => text,
            DeValue::Integer(number) if number.as_str() == "0" => return Some(Self::ZERO),
            DeValue::Integer(_) | DeValue::Float(_) => {
                return cell.fault(format!("needs a unit: expected {FORM}"));
            }
            _ => return cell.expected(FORM),
        };
        match humantime::parse_duration(text) {
            Ok(duration) if duration > LONGEST => cell.fault("is longer than ten years"),
            Ok(duration) if duration < SHORTEST && !duration.is_zero() => {
                cell.fault("is shorter than the shortest that can be measured, \"1ms\"")
            }
            Ok(duration) => Some(duration),
            Err(_) => cell.fault(format!("{text:?} is not {FORM}")),
        }
    }
}

/// Zero turns it off.
impl Value for Option<Duration> {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        Duration::read(cell).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
    }
}

/// A duration that cannot be turned off.
pub(super) struct Positive(pub Duration);

impl Value for Positive {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let duration = Duration::read(cell)?;
        if duration.is_zero() {
            cell.fault("cannot be turned off: must be at least \"1ms\"")
        } else {
            Some(Self(duration))
        }
    }
}

/// A node's weight.
pub(super) struct Weight(pub f64);

impl Value for Weight {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        /// Keeps sums and products of weights exact enough.
        const HEAVIEST: f64 = 1_000_000.0;
        let text = match cell.value {
            DeValue::Integer(number) => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return cell.expected("a number"),
        };
        match text.parse::<f64>() {
            Ok(weight) if (0.0..=HEAVIEST).contains(&weight) => Some(Self(weight)),
            _ => cell.fault(format!("{text} is no weight: must be from 0 to {HEAVIEST}")),
        }
    }
}

/// An address to listen on.
impl Value for HostPort {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let text = cell.text("an address such as \"127.0.0.1:6432\"")?;
        match Self::parse(text, None) {
            Ok(address) => Some(address),
            Err(wrong) => cell.fault(format!("{text:?}: {wrong}")),
        }
    }
}

/// An address to connect to.
pub(super) fn server_address(cell: &Cell<'_>, default_port: u16) -> Option<HostPort> {
    let text = cell.text("an address such as \"10.0.0.1:5432\"")?;
    match HostPort::parse(text, Some(default_port)) {
        Ok(address) if address.port() == 0 => cell.fault(format!("{text:?}: port 0 is no server's")),
        Ok(address) => Some(address),
        Err(wrong) => cell.fault(format!("{text:?}: {wrong}")),
    }
}

impl Value for Url {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let text = cell.text("a URL such as \"http://10.0.0.1:8008\"")?;
        match Self::parse(text) {
            Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Some(url),
            Ok(_) => cell.fault("must begin with http:// or https://"),
            Err(wrong) => cell.fault(format!("is no URL: {wrong}")),
        }
    }
}

/// A PEM file with certificates in it, when it was looked at.
pub(super) struct Certificates(pub PemFile);

impl Value for Certificates {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let path = cell.document.folder.join(cell.text("the path of a PEM file")?);
        let (file, bytes) = read_pem(cell, path)?;
        match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
            Ok(found) if !found.is_empty() => Some(Self(file)),
            Ok(_) => cell.fault(format!("there is no certificate in {}", file.path().display())),
            Err(_) => cell.fault(no_pem(&file)),
        }
    }
}

/// A file that is to be written; its folder was there when it was looked at.
pub(super) struct NewFile(pub PathBuf);

impl Value for NewFile {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let path = cell.document.folder.join(cell.text("the path of a file")?);
        let here =
            |folder: &Path| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.into() };
        match path.parent().map(here) {
            Some(folder) if folder.is_dir() && !path.is_dir() => Some(Self(path)),
            _ => cell.fault(format!("{} is not a file in a folder that exists", path.display())),
        }
    }
}

/// A PEM file with a private key in it, when it was looked at.
pub(super) struct PrivateKey(pub PemFile);

impl Value for PrivateKey {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        let path = cell.document.folder.join(cell.text("the path of a PEM file")?);
        let (file, bytes) = read_pem(cell, path)?;
        // The key itself is wiped; its file's text has to be, too.
        let bytes = Zeroizing::new(bytes);
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(_) => Some(Self(file)),
            Err(pem::Error::NoItemsFound) => cell
                .fault(format!("there is no private key without a passphrase in {}", file.path().display())),
            Err(_) => cell.fault(no_pem(&file)),
        }
    }
}

fn read_pem(cell: &Cell<'_>, path: PathBuf) -> Option<(PemFile, Vec<u8>)> {
    let shown = path.display().to_string();
    match PemFile::read(path) {
        Ok(read) => Some(read),
        Err(wrong) => cell.fault(format!("cannot read {shown}: {wrong}")),
    }
}

/// What is there instead may be a secret.
fn no_pem(file: &PemFile) -> String {
    format!("{} is not a PEM file", file.path().display())
}

/// A string, `{ env = "NAME" }` or `{ file = "PATH" }`. No fault shows what a secret says.
impl Value for Secret {
    fn read(cell: &Cell<'_>) -> Option<Self> {
        const FORM: &str = "a secret: text, { env = \"NAME\" } or { file = \"PATH\" }";
        let secret = match cell.value {
            DeValue::String(text) => text.to_string(),
            DeValue::Table(table) => {
                let one = (table.len() == 1).then(|| table.iter().next()).flatten();
                match one.map(|(key, value)| (key.get_ref().as_ref(), value.get_ref().as_str())) {
                    Some(("env", Some(name))) => from_environment(cell, name)?,
                    Some(("file", Some(path))) => from_file(cell, path)?,
                    _ => return cell.fault(format!("is not {FORM}")),
                }
            }
            _ => return cell.expected(FORM),
        };
        match secret.as_str() {
            "" => cell.fault("is empty: leave it out where there is no password"),
            text if text.contains('\0') => cell.fault("contains a zero byte, which no server accepts"),
            _ => Some(Self::new(secret)),
        }
    }
}

fn from_environment(cell: &Cell<'_>, name: &str) -> Option<String> {
    (cell.document.env)(name)
        .or_else(|| cell.fault(format!("the environment variable {name} is not set, or is not UTF-8")))
}

fn from_file(cell: &Cell<'_>, path: &str) -> Option<String> {
    let path = cell.document.folder.join(path);
    match read_bounded(&path) {
        Ok(text) if text.len() as u64 > SECRET_FILE_LIMIT => {
            cell.fault(format!("{} is too long for a secret", path.display()))
        }
        Ok(text) => {
            let line = text.strip_suffix('\n').unwrap_or(&text);
            Some(line.strip_suffix('\r').unwrap_or(line).to_owned())
        }
        Err(wrong) => cell.fault(format!("cannot read {}: {wrong}", path.display())),
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(SECRET_FILE_LIMIT + 1).read_to_string(&mut text)?;
    Ok(text)
}
