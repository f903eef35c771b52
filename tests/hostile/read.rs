//! Reads one changed input after another and looks how each ends.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use gradmem::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tempfile::TempDir;

use crate::{heap, mutate};

/// The longest that reading an input may take.
const LONGEST: Duration = Duration::from_secs(1);
/// After so long it will never end.
const FOREVER: Duration = Duration::from_secs(20);
/// So many different failures end a run.
const FAILURES: usize = 20;

/// Which inputs of a format are read.
#[derive(Clone, Copy)]
pub enum Count {
    Few(usize),
    Many(usize),
    One(usize),
}

impl Count {
    pub fn few(count: usize) -> Self {
        match number("GRADMEM_MUTATION") {
            Some(one) => Self::One(one),
            None => Self::Few(count),
        }
    }

    pub fn many() -> Self {
        match number("GRADMEM_MUTATION") {
            Some(one) => Self::One(one),
            None => Self::Many(number("GRADMEM_MUTATIONS").unwrap_or(100_000)),
        }
    }
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// A source of random numbers for an input.
pub fn rng(format: &str, number: usize) -> ChaCha8Rng {
    let name = format.bytes().fold(7u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let mut rng = ChaCha8Rng::seed_from_u64(name);
    rng.set_stream(number as u64);
    rng
}

/// A folder of valid files, of which an input changes some.
pub struct Folder {
    folder: TempDir,
    /// What the files hold by right.
    pub valid: BTreeMap<String, Vec<u8>>,
    /// How the names of those end that are changed.
    changed: &'static [&'static str],
}

impl Folder {
    /// A folder in memory, if there is a place for it.
    pub fn new(changed: &'static [&'static str]) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => TempDir::new_in(memory),
            false => TempDir::new(),
        };
        Self {
            folder: folder.unwrap(),
            valid: BTreeMap::new(),
            changed,
        }
    }

    fn is_changed(&self, name: &str) -> bool {
        self.changed.iter().any(|end| name.ends_with(end))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes the files that are in the folder now as the valid ones.
    pub fn keep(&mut self) {
        self.valid = files(self.path());
    }

    pub fn write(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes.as_ref()).unwrap();
        self.valid.insert(name.into(), bytes.as_ref().into());
    }

    /// Puts the changed files in their places, and gives back what undoes it.
    fn put(&self, changed: &[(String, Vec<u8>)]) {
        for (name, bytes) in changed {
            std::fs::write(self.path().join(name), bytes).unwrap();
        }
    }

    /// Makes the folder what it was.
    pub fn restore(&self) {
        let found = files(self.path());
        for name in found.keys() {
            if !self.valid.contains_key(name) {
                std::fs::remove_file(self.path().join(name)).unwrap();
            }
        }
        for (name, bytes) in &self.valid {
            if found.get(name) != Some(bytes) {
                std::fs::write(self.path().join(name), bytes).unwrap();
            }
        }
    }
}

/// The files of a folder and of those in it.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(inner) = folders.pop() {
        for entry in std::fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    found
}

/// How reading ended.
struct End {
    result: Result<Result<(), Error>, String>,
    peak: usize,
    took: Duration,
}

impl End {
    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        let what = match &self.result {
            Err(panic) => Some(format!("panics: {panic}")),
            Ok(Err(error)) => fault_of(error),
            Ok(Ok(())) => None,
        };
        let slow = (self.took > LONGEST).then(|| format!("takes {:?}", self.took));
        let large = (self.peak > heap::MOST).then(|| format!("takes {} bytes", self.peak));
        what.or(slow).or(large)
    }
}

/// What is wrong with an error that a damaged file leads to.
pub fn fault_of(error: &Error) -> Option<String> {
    let text = error.to_string();
    if text.chars().any(char::is_control) {
        return Some(format!("has an error of more than one line: {text:?}"));
    }
    if text.chars().count() > 5000 {
        return Some("has an error of more than 5000 characters".into());
    }
    (!error.is_user_error()).then(|| format!("is not said to be the file's fault: {text}"))
}

thread_local! {
    /// What a panic of this thread said, while one is expected.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics of inputs from being printed.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let expected = PANIC.with_borrow_mut(|said| match said {
                Some(said) => {
                    *said = info.to_string().replace('\n', " ");
                    true
                }
                None => false,
            });
            if !expected {
                hook(info);
            }
        }));
    });
}

/// Reads an input once.
fn once(format: &'static str, number: usize, open: &dyn Fn() -> Result<(), Error>) -> End {
    PANIC.set(Some(String::new()));
    let start = time();
    let run = || catch_unwind(AssertUnwindSafe(open));
    let (result, peak) = heap::peak(format, number, run);
    let took = time() - start;
    let said = PANIC.take().unwrap_or_default();
    let result = result.map_err(|panic: Box<dyn Any + Send>| {
        drop(panic);
        said
    });
    End { result, peak, took }
}

/// The time that this thread has had of a processor, or, where the system does not tell, any time that passes: other
/// programs make an input take longer, and no slower to read.
fn time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|text| text.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Reads an input, and again if it took long: the machine may have been busy.
fn read(format: &'static str, number: usize, open: &dyn Fn() -> Result<(), Error>) -> End {
    let end = once(format, number, open);
    match end.took > LONGEST {
        true => once(format, number, open),
        false => end,
    }
}

/// Inputs are read one at a time: what memory they take is counted for the whole program.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Inputs so far; 0 if none is being read.
static SINCE: AtomicU64 = AtomicU64::new(0);
static READ: Mutex<String> = Mutex::new(String::new());

/// Ends the program when an input never ends.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            let (mut last, mut since) = (0, Instant::now());
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let now = SINCE.load(Relaxed);
                if now != last || now == 0 {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > FOREVER {
                    let what = READ.lock().unwrap_or_else(PoisonError::into_inner);
                    eprintln!("{what}: does not end");
                    std::process::abort();
                }
            }
        });
    });
}

/// Where inputs that fail are kept.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile")
}

/// Reads inputs: one of the folder's files, by its name, is changed by `change`, which may change others
/// with it, and read by `open`, which is given the folder and the name.
pub fn hammer(
    format: &'static str,
    count: Count,
    folder: &Folder,
    change: impl Fn(&mut ChaCha8Rng, &str) -> Vec<(String, Vec<u8>)>,
    open: impl Fn(&Path, &str) -> Result<(), Error>,
) {
    let _alone = alone();
    catch_panics();
    watch();
    let names: Vec<&String> = folder
        .valid
        .keys()
        .filter(|name| folder.is_changed(name))
        .collect();
    for name in &names {
        // What nobody has changed is taken.
        if let Err(error) = open(folder.path(), name) {
            panic!("{format}: {name} is not valid: {error}");
        }
        folder.restore();
    }
    let numbers = match count {
        Count::Few(count) | Count::Many(count) => 0..count,
        Count::One(one) => one..one + 1,
    };
    std::fs::create_dir_all(kept()).unwrap();
    let start = Instant::now();
    let (mut largest, mut longest, mut accepted) = ((0, 0), (Duration::ZERO, 0), 0);
    let mut faults: BTreeMap<String, (usize, String, usize)> = BTreeMap::new();
    let mut total = 0;
    for number in numbers {
        total += 1;
        let mut rng = rng(format, number);
        let name = *mutate::pick(&mut rng, &names);
        let changed = change(&mut rng, name);
        folder.put(&changed);
        if let Count::One(_) = count {
            save(format, number, &changed);
        }
        let what = format!("{format} {number}");
        if let Count::Many(_) = count {
            // Where it is found if the program dies of it.
            std::fs::write(kept().join(format!("reading-{format}")), &what).unwrap();
        }
        *READ.lock().unwrap_or_else(PoisonError::into_inner) = what;
        SINCE.fetch_add(1, Relaxed);
        let path = folder.path();
        let end = read(format, number, &|| open(path, name));
        if let (Count::One(_), Ok(result)) = (count, &end.result) {
            println!("{format} {number}: {result:?}");
        }
        largest = largest.max((end.peak, number));
        longest = longest.max((end.took, number));
        accepted += usize::from(matches!(end.result, Ok(Ok(()))));
        if let Some(fault) = end.fault() {
            save(format, number, &changed);
            // One of a kind is enough: of a panic, one of each place.
            let kind = match &end.result {
                Err(panic) => panic.split("rs:").next().unwrap_or_default(),
                Ok(_) => fault.split([':', '.']).next().unwrap_or_default(),
            };
            let kind = kind.to_string();
            let (_, _, times) = faults.entry(kind).or_insert((number, fault, 0));
            *times += 1;
            if faults.len() >= FAILURES {
                break;
            }
        }
        folder.restore();
    }
    SINCE.store(0, Relaxed);
    let said = format!(
        "{format}: {total} inputs in {:.1} s, {accepted} accepted; at most {:.1} ms (input {}), {:.1} MiB (input {})",
        start.elapsed().as_secs_f64(),
        1e3 * longest.0.as_secs_f64(),
        longest.1,
        largest.0 as f64 / f64::from(1 << 20),
        largest.1,
    );
    println!("{said}");
    let faults: Vec<_> = faults
        .values()
        .map(|(number, fault, times)| format!("{format} {number} ({times} like it) {fault}"))
        .collect();
    assert!(faults.is_empty(), "{said}\n{}", faults.join("\n"));
}

/// Keeps the files of an input.
fn save(format: &str, number: usize, changed: &[(String, Vec<u8>)]) {
    for (name, bytes) in changed {
        let path = kept().join(format!("{format}-{number}")).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Reads something that failed once, and gives the error back.
pub fn check(what: &'static str, open: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    let _alone = alone();
    catch_panics();
    let end = read(what, 0, &open);
    if let Some(fault) = end.fault() {
        panic!("{what} {fault}");
    }
    end.result.unwrap()
}
