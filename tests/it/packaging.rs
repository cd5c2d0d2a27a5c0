//! What is shipped: the Debian package, the systemd units, the image and the manifests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::support::drivers;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

const BINARY: &str = env!("CARGO_BIN_EXE_pointsman");

/// Runs a program in the project's folder; panics when it fails. What it said.
fn run(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let Output { status, stdout, stderr } =
        output.unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup", program.display()));
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{} {arguments:?}: {said}", program.display());
    said
}

/// The package of the binary under test, taken apart.
struct Package {
    folder: TempDir,
}

impl Package {
    fn build() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let package = Self { folder };
        let deb = package.path("pointsman.deb");
        // Compressed fast: it is taken apart at once.
        let output = ["--output", &deb, "--fast"];
        run(root().join("packaging/build-deb"), &[&["--built", "dev"], &output[..]].concat());
        run("dpkg-deb", &["-x", &deb, &package.path("files")]);
        run("dpkg-deb", &["-e", &deb, &package.path("control")]);
        package
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a path of text").to_owned()
    }

    fn file(&self, name: &str) -> String {
        self.path(&format!("files/{name}"))
    }
}

#[test]
fn the_debian_package_brings_what_runs_and_what_explains_it() {
    let package = Package::build();

    let listed = run("dpkg-deb", &["-c", &package.path("pointsman.deb")]);
    for (mode, file) in [
        ("-rwxr-xr-x", "./usr/bin/pointsman"),
        ("-rw-r--r--", "./usr/lib/systemd/system/pointsman.service"),
        ("-rw-r--r--", "./usr/lib/systemd/system/pointsman.socket"),
        ("-rw-r--r--", "./usr/share/man/man1/pointsman.1.gz"),
        ("-rw-r--r--", "./usr/share/man/man1/pointsman-doctor.1.gz"),
        ("-rw-r--r--", "./usr/share/bash-completion/completions/pointsman"),
        ("-rw-r--r--", "./usr/share/zsh/vendor-completions/_pointsman"),
        ("-rw-r--r--", "./usr/share/fish/vendor_completions.d/pointsman.fish"),
        ("-rw-r--r--", "./usr/share/doc/pointsman/copyright"),
        ("-rw-r--r--", "./usr/share/doc/pointsman/examples/pointsman.toml"),
        ("-rw-r--r--", "./usr/share/pointsman/grafana/dashboards/overview.json"),
        ("-rw-r--r--", "./usr/share/pointsman/grafana/prometheus/rules/pointsman.yml"),
    ] {
        let found = listed.lines().any(|line| {
            let line = line.strip_suffix(".gz").unwrap_or(line);
            let file = file.strip_suffix(".gz").unwrap_or(file);
            line.starts_with(mode) && line.ends_with(file)
        });
        assert!(found, "{mode} {file} is not in\n{listed}");
    }
    let of_root =
        |line: &str| ["0/0", "root/root"].contains(&line.split_whitespace().nth(1).unwrap_or_default());
    assert!(listed.lines().all(of_root), "{listed}");
    let version = run(package.file("usr/bin/pointsman"), &["--version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let control = fs::read_to_string(package.path("control/control")).expect("it is there");
    assert!(control.contains("Package: pointsman\n") && control.contains("ca-certificates"), "{control}");
    for (script, word) in
        [("postinst", "deb-systemd-invoke"), ("prerm", "deb-systemd-invoke"), ("postrm", "daemon-reload")]
    {
        let path = package.path(&format!("control/{script}"));
        run("sh", &["-n", &path]);
        let text = fs::read_to_string(&path).expect("it is there");
        assert!(text.contains(word) && text.contains("pointsman.service"), "{script}: {text}");
    }
    explains_itself(&package);
}

fn explains_itself(package: &Package) {
    for entry in fs::read_dir(package.file("usr/share/man/man1")).expect("it is there").flatten() {
        let path = entry.path();
        let output = Command::new("man")
            .args(["--warnings", "--encoding=UTF-8", "-l"])
            .arg(&path)
            .env("MANWIDTH", "100")
            .output()
            .expect("man is installed: scripts/setup");
        let (page, warnings) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", path.display());
        assert!(page.contains("SYNOPSIS"), "{}: {page}", path.display());
        let others = page.split(|letter: char| letter.is_whitespace() || letter == ',');
        for other in others.filter_map(|word| word.strip_suffix("(1)")) {
            let file = package.file(&format!("usr/share/man/man1/{other}.1.gz"));
            assert!(Path::new(&file).exists(), "{}: there is no page {other}", path.display());
        }
    }
    let completions = package.file("usr/share/bash-completion/completions/pointsman");
    let complete = format!(
        "source {completions}; COMP_WORDS=(pointsman do); COMP_CWORD=1; \
         $(complete -p pointsman | sed 's/.*-F \\([^ ]*\\).*/\\1/') pointsman do pointsman; echo ${{COMPREPLY[@]}}"
    );
    assert_eq!(run("bash", &["--norc", "-c", &complete]).trim(), "doctor");
}

/// Above this `systemd-analyze security` finds too much left open, on its scale of 0 to 100.
const EXPOSURE: &str = "--threshold=20";

#[test]
fn the_systemd_units_are_sound_and_leave_little_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut units = Vec::new();
    for unit in ["pointsman.service", "pointsman.socket"] {
        let text = fs::read_to_string(root().join("packaging/systemd").join(unit)).expect("it is there");
        let path = folder.path().join(unit);
        // Verified where the binary is not installed.
        fs::write(&path, text.replace("/usr/bin/pointsman", BINARY)).expect("the folder is ours");
        units.push(path.to_str().expect("a path of text").to_owned());
    }

    let said = run("systemd-analyze", &["verify", "--man=no", &units[0], &units[1]]);

    // It also finds fault with other units of the machine.
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("pointsman")).collect();
    assert!(of_ours.is_empty(), "{said}");
    run("systemd-analyze", &["security", "--offline=true", EXPOSURE, &units[0]]);
}

#[test]
fn the_manifests_are_valid_and_fit_each_other_the_image_and_the_binary() {
    let python = |name: &str| drivers::folder().join("venv/bin").join(name);
    let manifests = ["packaging/kubernetes/pointsman.yaml", "packaging/kubernetes/secret.example.yaml"];

    for version in ["1.29", "1.37"] {
        run(python("kubernetes-validate"), &[&["--strict", "-k", version], &manifests[..]].concat());
    }

    let script = drivers::script("kubernetes.py");
    let script = script.to_str().expect("a path of text");
    let said =
        run(python("python"), &[&[script, BINARY], &manifests[..], &["packaging/Dockerfile"]].concat());
    assert_eq!(said.trim(), "ok");
}

#[test]
fn the_image_is_built_from_what_is_there() {
    run(drivers::folder().join("venv/bin/hadolint"), &["packaging/Dockerfile"]);

    let image = fs::read_to_string(root().join("packaging/Dockerfile")).expect("it is there");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("it is there");
    let rust = manifest.split("rust-version = \"").nth(1).and_then(|rest| rest.split('"').next());
    let rust = rust.expect("the manifest says which Rust it needs");
    assert!(image.contains(&format!("FROM rust:{rust}-")), "it is built with Rust {rust}");
    assert!(image.contains("COPY --from=build /src/target/release/pointsman /usr/bin/pointsman"));
    // What is built elsewhere would be sent along and used.
    let ignored = fs::read_to_string(root().join(".dockerignore")).expect("it is there");
    assert!(ignored.lines().any(|line| line == "target"), "{ignored}");
}
