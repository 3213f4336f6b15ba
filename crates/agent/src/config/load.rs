//! From a file to a configuration, or to everything that is wrong in it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;
use vahti_runtime::config::InvalidField;
use vahti_runtime::config::bounds::{Bound, Bounded, Checked};
use vahti_runtime::event::escape;

use super::Config;
use super::problem::{At, InvalidConfig, Problem};
use super::tree::{self, Node, Step, read_path, show_path};
use super::typed::Mistake;

/// More than a configuration can need, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// After this many mistakes the file is probably not a configuration at all.
const MAX_PROBLEMS: usize = 50;

/// A configuration, and which of its fields the file set.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    tree: Option<Node>,
}

impl Loaded {
    /// The defaults; nothing is set.
    pub(crate) fn nothing() -> Self {
        Loaded { config: Config::default(), tree: None }
    }

    /// Whether the file says anything about a field, such as `node_name`.
    pub(crate) fn sets(&self, path: &str) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.contains(&read_path(path)))
    }
}

/// Reads a configuration from a file.
///
/// # Errors
/// The file can't be read, or everything that is wrong in it.
pub(crate) fn from_file(path: &Path) -> Result<Loaded, InvalidConfig> {
    from_file_by(path, Config::validate, read)
}

/// Reads a configuration while one is in force.
///
/// # Errors
/// As [`from_file`], or it is no file that can be read twice, or has nothing in
/// it.
pub(crate) fn again_from_file(path: &Path) -> Result<Loaded, InvalidConfig> {
    from_file_by(path, Config::validate, read_again)
}

/// Reads a configuration that is to be good without a command line.
///
/// # Errors
/// As [`from_file`], or it gives nothing to do.
pub(crate) fn check(path: &Path) -> Result<(), InvalidConfig> {
    from_file_by(path, Config::validate_alone, read).map(drop)
}

/// What finds values that are out of their bounds.
type Validate = fn(&Config) -> Vec<InvalidField>;

fn from_file_by(
    path: &Path,
    validate: Validate,
    read: fn(&Path) -> Result<String, Problem>,
) -> Result<Loaded, InvalidConfig> {
    let name = escape(path.as_os_str().as_encoded_bytes()).into_owned();
    let text = read(path)
        .map_err(|problem| InvalidConfig { source_name: name.clone(), problems: vec![problem] })?;
    from_text(&text, &name, validate)
}

/// Reads a configuration from YAML; an empty text is all defaults.
///
/// # Errors
/// Everything that is wrong in it.
pub(crate) fn from_text(
    text: &str,
    source_name: &str,
    validate: Validate,
) -> Result<Loaded, InvalidConfig> {
    let invalid = |mut problems: Vec<Problem>| {
        problems.sort_by_key(|problem| problem.at);
        InvalidConfig { source_name: source_name.to_owned(), problems }
    };
    let mut tree = tree::parse(text).map_err(invalid)?;
    tree.lengthen("log", "level");
    let (config, told) = typed(&mut tree);
    let mut problems: Vec<Problem> = told.iter().map(problem).collect();
    for field in config.iter().flat_map(validate) {
        let (at, path) = tree.locate(&read_path(&field.path));
        // A list that an item was taken out of is shorter for that alone.
        if told
            .iter()
            .any(|mistake| mistake.path.len() > path.len() && mistake.path.starts_with(&path))
        {
            continue;
        }
        let path = show_path(&path);
        let text = InvalidField { path, ..field }.to_string();
        problems.push(Problem { at: Some(at), text });
    }
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, tree: Some(tree) }),
        _ => Err(invalid(problems)),
    }
}

/// Takes one mistake after the other out of the tree, until the rest fits the
/// types or nothing is left to take out.
fn typed(tree: &mut Node) -> (Option<Config>, Vec<Mistake>) {
    let mut told: Vec<Mistake> = Vec::new();
    loop {
        let mistake = match Config::deserialize(&*tree) {
            Ok(config) => return (Some(config), told),
            Err(mistake) => mistake,
        };
        let can_go_on = !mistake.path.is_empty() && tree.remove(&mistake.path);
        // What is lacking may be what was taken out.
        if !told.iter().any(|earlier| mistake.follows_from(earlier)) {
            told.push(mistake);
        }
        if told.len() >= MAX_PROBLEMS || !can_go_on {
            return (None, told);
        }
    }
}

/// A mistake as people see it: where the type says less than the field's
/// bound, with that.
fn problem(mistake: &Mistake) -> Problem {
    let bound = mistake.value.as_ref().and_then(|value| {
        let bound = bound_of(&mistake.path)?.to_string();
        Some(InvalidField { path: show_path(&mistake.path), value: value.clone(), bound })
    });
    let told = mistake.problem();
    Problem { text: bound.map_or(told.text, |field| field.to_string()), ..told }
}

/// The bound of a field, wherever in a list.
fn bound_of(path: &[Step]) -> Option<Bound> {
    let path = path.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) if path.is_empty() => key.clone(),
        Step::Key(key) => format!("{path}.{key}"),
        Step::Index(_) => format!("{path}[]"),
    });
    let rows = Checked::of(&Config::sample()).rows;
    rows.into_iter().find(|(field, _)| *field == path).map(|(_, bound)| bound)
}

fn nowhere(text: impl Into<String>) -> Problem {
    Problem { at: None, text: text.into() }
}

fn read(path: &Path) -> Result<String, Problem> {
    read_all(File::open(path).map_err(|e| nowhere(explain(&e)))?)
}

/// Waits for nobody: whoever opens a pipe that nobody writes to waits for ever.
fn read_again(path: &Path) -> Result<String, Problem> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| nowhere(explain(&e)))?;
    let there = file.metadata().map_err(|e| nowhere(explain(&e)))?;
    if !there.is_file() && !there.is_dir() {
        return Err(nowhere("is no file that can be read again"));
    }
    let text = read_all(file)?;
    if text.trim().is_empty() {
        // As whoever writes it has just begun, or the disk is full.
        return Err(nowhere("is empty; write {} for all defaults"));
    }
    Ok(text)
}

fn read_all(file: File) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| nowhere(explain(&e)))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(nowhere("is larger than 1MiB, which no configuration needs to be"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to());
        let good = String::from_utf8_lossy(good.unwrap_or_default());
        let last = good.rsplit('\n').next().unwrap_or_default();
        Problem {
            at: Some(At {
                line: good.matches('\n').count() as u64 + 1,
                column: last.chars().count() as u64 + 1,
            }),
            text: "not UTF-8 from here on; save the file as UTF-8".to_owned(),
        }
    })
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file; `vahti config example` prints one to start from".to_owned()
        }
        io::ErrorKind::IsADirectory => "is a folder; name the file in it".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}
