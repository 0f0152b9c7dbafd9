//! The archive over a folder.

mod kill;

use std::{
    fs,
    ops::RangeInclusive,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use topnet_account::ChannelId;
use topnet_config::Archive as Config;
use topnet_log::{Line, Segments, numbers, segment_path};
use topnet_unit::{BootId, Slot};

use crate::{
    Archive, ArchiveError, ObjectHash, State, forget_files_before, store::OBJECTS, waiting,
};

const CHANNEL: ChannelId = ChannelId([1; 32]);
const LINES_MAX: u64 = 4;
const START_MS: u64 = 1_700_000_000_000;

fn line(units: u64) -> Line {
    Line {
        channel: CHANNEL,
        units_before: units - 1,
        units,
        channel_bytes: units * 1000,
        time_ms: START_MS + units,
        boot: BootId([3; 16]),
        slot: Slot {
            index: 4,
            generation: 5,
        },
    }
}

fn lines(units: RangeInclusive<u64>) -> Vec<Line> {
    units.map(line).collect()
}

/// Two full segments and an open one, of ten lines.
fn log() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(dir.path(), None, LINES_MAX).unwrap();
    segments.append(&lines(1..=10)).unwrap();
    segments.sync().unwrap();
    assert_eq!(segments.position().segment, 3);
    dir
}

fn folder(log: &Path) -> Config {
    Config {
        dir: log.join("archive"),
        ..Config::default()
    }
}

async fn archived() -> (tempfile::TempDir, Archive) {
    let dir = log();
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    assert_eq!(waiting(dir.path(), 3).unwrap(), [1, 2]);
    for number in [1, 2] {
        archive.take(number).await.unwrap();
    }
    (dir, archive)
}

#[tokio::test]
async fn lines_are_found_in_the_store_as_they_were_in_the_directory() {
    let (dir, archive) = archived().await;
    assert_eq!(numbers(dir.path()).unwrap(), [3]);
    assert!(waiting(dir.path(), 3).unwrap().is_empty());
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1..=10));
    assert_eq!(archive.lines_of(&ChannelId([2; 32])).await.unwrap(), []);

    let segments = archive.segments().await.unwrap();
    let shown: Vec<_> = segments
        .iter()
        .map(|segment| {
            (
                segment.state,
                segment.lines,
                segment.first_ms,
                segment.last_ms,
            )
        })
        .collect();
    let ms = |units| START_MS + units;
    assert_eq!(
        shown,
        [
            (State::Archived, 4, ms(1), ms(4)),
            (State::Archived, 4, ms(5), ms(8)),
            (State::Open, 2, ms(9), ms(10)),
        ]
    );
    let hash = segments[1].hash.unwrap();
    let object = dir.path().join("archive/objects").join(hash.to_string());
    let bytes = fs::read(&object).unwrap();
    assert_eq!(ObjectHash::of(&bytes), hash);
    assert_eq!(archive.segment(2).await.unwrap(), bytes);
    assert_eq!(archive.number_by(&hash).await.unwrap(), 2);
    assert!(matches!(
        archive.segment(3).await,
        Err(ArchiveError::Unknown { .. })
    ));
    let verdict = archive.verify().await.unwrap();
    assert_eq!((verdict.segments, verdict.lines), (3, 10));
    assert_eq!(verdict.findings, []);
}

#[tokio::test]
async fn what_the_journal_may_still_cut_is_not_taken() {
    let dir = log();
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    assert_eq!(waiting(dir.path(), 2).unwrap(), [1]);
    // An open one has no seal, whatever anybody says.
    assert_eq!(waiting(dir.path(), 9).unwrap(), [1, 2]);
    assert!(matches!(archive.take(3).await, Err(ArchiveError::Log(_))));
    assert_eq!(numbers(dir.path()).unwrap(), [1, 2, 3]);
}

#[tokio::test]
async fn the_store_alone_is_enough() {
    let (dir, _) = archived().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let log_dir = elsewhere.path().join("log");
    let archive = Archive::open_to_read(&log_dir, &folder(dir.path())).unwrap();
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1..=8));
    assert_eq!(archive.verify().await.unwrap().findings, []);
    assert!(!log_dir.exists(), "reading makes nothing");
    assert_eq!(archive.restore().await.unwrap().entries, 2);
    assert_eq!(archive.restore().await.unwrap().entries, 0);
    // A log that is begun there goes on behind what the store has.
    let segments = Segments::open(&log_dir, None, LINES_MAX).unwrap();
    assert_eq!(segments.position().segment, 3);
    assert_eq!(archive.verify().await.unwrap().findings, []);
}

#[tokio::test]
async fn what_cannot_be_restored_is_listed_and_keeps_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(dir.path(), None, LINES_MAX).unwrap();
    segments.append(&lines(1..=14)).unwrap();
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    let mut objects = Vec::new();
    for number in 1..=3 {
        let hash = archive.take(number).await.unwrap().hash;
        objects.push(dir.path().join(format!("archive/objects/{hash}")));
    }
    let stored = |number| dir.path().join(format!("archive/segments/{number:016}"));
    let here = |number| dir.path().join(format!("{number:016}.manifest"));
    fs::remove_file(stored(1)).unwrap();
    fs::remove_file(&objects[0]).unwrap();
    fs::write(stored(2), "").unwrap();
    fs::write(here(2), "").unwrap();
    fs::remove_file(here(3)).unwrap();
    let restored = archive.restore().await.unwrap();
    assert_eq!(restored.entries, 1);
    assert!(here(3).exists());
    let found = restored.findings.iter();
    let found: Vec<_> = found.map(|found| (found.number, found.code)).collect();
    assert_eq!(found, [(1, "object_missing"), (2, "manifest")]);
}

/// (what is damaged, where in it, how)
#[tokio::test]
async fn damage_is_named_and_never_read_as_a_line() {
    let (dir, archive) = archived().await;
    let hash = archive.entry(1).await.unwrap().unwrap().hash;
    let other = archive.entry(2).await.unwrap().unwrap().hash;
    let below = |name: &str| dir.path().join("archive").join(name);
    let object = below(&format!("objects/{hash}"));
    let stored = below("segments/0000000000000001");
    let here = dir.path().join("0000000000000001.manifest");
    let whole = fs::read(&object).unwrap();
    let line = topnet_log::LINE_BYTES;
    let flip = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 1;
    type Spoil = Box<dyn Fn(&mut Vec<u8>)>;
    let another = fs::read(below(&format!("objects/{other}"))).unwrap();
    // Another segment of the same number, with a seal that holds.
    let forged = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(forged.path(), None, LINES_MAX).unwrap();
    segments.append(&lines(21..=25)).unwrap();
    let forged = fs::read(segment_path(forged.path(), 1)).unwrap();
    let cases: Vec<(&Path, Spoil, &str)> = vec![
        (&object, Box::new(flip(3)), "object_damaged"),
        (&object, Box::new(flip(line - 1)), "object_damaged"),
        (&object, Box::new(flip(line + 40)), "object_damaged"),
        (
            &object,
            Box::new(flip(whole.len() - line)),
            "object_damaged",
        ),
        (&object, Box::new(flip(whole.len() - 50)), "object_damaged"),
        (&object, Box::new(flip(whole.len() - 1)), "object_damaged"),
        (
            &object,
            Box::new(|bytes| bytes.truncate(88)),
            "object_damaged",
        ),
        (&object, Box::new(|bytes| bytes.push(0)), "object_damaged"),
        (&object, Box::new(Vec::clear), "object_damaged"),
        (
            &object,
            Box::new(move |bytes| bytes.clone_from(&another)),
            "object_damaged",
        ),
        (
            &object,
            Box::new(move |bytes| bytes.clone_from(&forged)),
            "object_damaged",
        ),
        (&stored, Box::new(flip(30)), "manifest"),
        (&stored, Box::new(|bytes| bytes.truncate(100)), "manifest"),
        (&stored, Box::new(Vec::clear), "manifest"),
        (&here, Box::new(flip(60)), "manifest"),
        (&here, Box::new(|bytes| bytes.truncate(100)), "manifest"),
    ];
    for (number, (path, spoil, code)) in cases.iter().enumerate() {
        let right = fs::read(path).unwrap();
        let mut bytes = right.clone();
        spoil(&mut bytes);
        fs::write(path, &bytes).unwrap();
        let verdict = archive.verify().await.unwrap();
        let found: Vec<_> = verdict
            .findings
            .iter()
            .map(|f| (f.number, f.code))
            .collect();
        assert_eq!(found, [(1, *code)], "{number}");
        assert_eq!((verdict.segments, verdict.lines), (2, 6), "{number}");
        match archive.lines_of(&CHANNEL).await {
            // The directory's entry is enough, if the store's is the damaged one.
            Ok(found) => assert_eq!((found, *path), (lines(1..=10), &*stored), "{number}"),
            Err(error) => assert_eq!(error.code(), *code, "{number}"),
        }
        // The entries mend each other, an object only a copy of it.
        if *code == "manifest" {
            assert_eq!(archive.restore().await.unwrap().entries, 1, "{number}");
            assert_eq!(fs::read(path).unwrap(), right, "{number}");
        } else {
            fs::write(path, &right).unwrap();
        }
    }
    fs::remove_file(&object).unwrap();
    let error = archive.lines_of(&CHANNEL).await.unwrap_err();
    assert_eq!(error.code(), "object_missing");
    assert!(error.what().contains(&hash.to_string()), "{error}");
    let findings = archive.verify().await.unwrap().findings;
    assert_eq!(findings[0].code, "object_missing");
    fs::write(&object, &whole).unwrap();

    for path in [&stored, &here] {
        fs::remove_file(path).unwrap();
    }
    // Without any entry nobody knows of the first; what is missing in between is seen.
    assert_eq!(archive.verify().await.unwrap().findings, []);
    let second = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    assert_eq!(second.lines_of(&CHANNEL).await.unwrap(), lines(5..=10));
    fs::write(
        &stored,
        crate::Entry::of(&object, 1, &whole, |_| {})
            .unwrap()
            .to_text(),
    )
    .unwrap();
    fs::remove_file(below("segments/0000000000000002")).unwrap();
    fs::remove_file(dir.path().join("0000000000000002.manifest")).unwrap();
    let findings = archive.verify().await.unwrap().findings;
    assert_eq!(
        (findings[0].number, findings[0].code),
        (2, "segment_missing")
    );
}

#[tokio::test]
async fn an_object_that_cannot_be_read_hides_nothing_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(dir.path(), None, LINES_MAX).unwrap();
    segments.append(&lines(1..=22)).unwrap();
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    let mut objects = Vec::new();
    for number in 1..=5 {
        let hash = archive.take(number).await.unwrap().hash;
        objects.push(dir.path().join(format!("archive/objects/{hash}")));
    }
    // A link to itself is there and nobody can read it, not even root.
    let spoil = |object: &Path| {
        fs::remove_file(object).unwrap();
        std::os::unix::fs::symlink(object, object).unwrap();
    };
    spoil(&objects[0]);
    spoil(&objects[1]);
    fs::remove_file(&objects[3]).unwrap();
    let verdict = archive.verify().await.unwrap();
    let found: Vec<_> = verdict
        .findings
        .iter()
        .map(|finding| (finding.number, finding.code))
        .collect();
    assert_eq!(
        found,
        [
            (1, "archive_unreadable"),
            (2, "archive_unreadable"),
            (4, "object_missing")
        ]
    );
    assert_eq!(verdict.segments, 3);
    // When nothing can be read it is the store.
    spoil(&objects[2]);
    let error = archive.verify().await.unwrap_err();
    assert_eq!(error.code(), "archive_unreachable");
}

#[tokio::test]
async fn an_entry_that_names_another_segment_is_refused() {
    let (dir, archive) = archived().await;
    let first = archive.entry(1).await.unwrap().unwrap();
    let mut wrong = archive.entry(2).await.unwrap().unwrap();
    wrong.number = 1;
    // In one of the two places they disagree; in both, the object has another number.
    let stored = dir.path().join("archive/segments/0000000000000001");
    fs::write(&stored, wrong.to_text()).unwrap();
    let findings = archive.verify().await.unwrap().findings;
    assert_eq!(
        (findings[0].number, findings[0].code),
        (1, "segment_conflict")
    );
    assert!(findings[0].what.contains(&wrong.hash.to_string()));
    let restored = archive.restore().await.unwrap();
    assert_eq!(restored.findings[0].code, "segment_conflict");
    archive.manifest.write(&wrong).unwrap();
    let error = archive.lines_of(&CHANNEL).await.unwrap_err();
    assert_eq!(error.code(), "object_damaged");
    // The right object under a wrong count.
    let mut wrong = first;
    wrong.lines += 1;
    archive.manifest.write(&wrong).unwrap();
    let error = archive.lines_of(&CHANNEL).await.unwrap_err();
    assert!(error.what().contains("otherwise"), "{error}");
}

#[tokio::test]
async fn two_logs_in_one_store_are_told_apart_and_neither_loses_a_line() {
    let (dir, _) = archived().await;
    let other = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(other.path(), None, LINES_MAX).unwrap();
    segments.append(&lines(20..=24)).unwrap();
    let archive = Archive::open(other.path(), &folder(dir.path())).unwrap();
    let error = archive.take(1).await.unwrap_err();
    assert!(
        matches!(error, ArchiveError::Conflict { number: 1, .. }),
        "{error}"
    );
    assert_eq!(numbers(other.path()).unwrap(), [1, 2]);
    // Nor does what retention would never remove pile up there.
    let objects = fs::read_dir(dir.path().join("archive/objects")).unwrap();
    assert_eq!(objects.count(), 2);
}

#[tokio::test]
async fn a_damaged_segment_is_sealed_and_the_live_one_is_open_whatever_the_store_has() {
    let (dir, _) = archived().await;
    let other = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(other.path(), None, LINES_MAX).unwrap();
    segments.append(&lines(20..=21)).unwrap();
    segments.sync().unwrap();
    let archive = Archive::open(other.path(), &folder(dir.path())).unwrap();
    let state = |segments: &[crate::Segment], place: usize| segments[place].state;
    let listed = archive.segments().await.unwrap();
    assert_eq!(state(&listed, 0), State::Open);
    // The number is the other log's, and nothing is without a seal that should have one.
    let findings = archive.verify().await.unwrap().findings;
    assert!(
        findings
            .iter()
            .all(|found| found.code != "segment_unsealed"),
        "{findings:?}"
    );

    segments.append(&lines(22..=24)).unwrap();
    segments.sync().unwrap();
    let path = segment_path(other.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let listed = archive.segments().await.unwrap();
    assert_eq!(state(&listed, 0), State::Sealed);
    assert!(listed[0].problem.is_some());
}

#[tokio::test]
async fn a_damaged_segment_is_not_taken() {
    let dir = log();
    let path = segment_path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    assert!(matches!(archive.take(1).await, Err(ArchiveError::Log(_))));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    archive.take(2).await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_read_waits_and_holds_up_no_other() {
    let dir = log();
    let path = segment_path(dir.path(), 1);
    fs::remove_file(&path).unwrap();
    // A link to itself is there and nobody can read it, not even root.
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert_eq!(waiting(dir.path(), 3).unwrap(), [1, 2]);
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    let error = archive.take(1).await.unwrap_err();
    assert!(error.what().contains("0000000000000001.log"), "{error}");
    archive.take(2).await.unwrap();
}

#[tokio::test]
async fn an_object_that_was_already_there_is_believed_only_when_read() {
    let dir = log();
    let store = folder(dir.path());
    let bytes = fs::read(segment_path(dir.path(), 1)).unwrap();
    let object = store
        .dir
        .join(OBJECTS)
        .join(ObjectHash::of(&bytes).to_string());
    fs::create_dir_all(object.parent().unwrap()).unwrap();
    let mut damaged = bytes.clone();
    damaged[100] ^= 1;
    fs::write(&object, &damaged).unwrap();
    // What a kill in the middle of a write leaves.
    let half = store.dir.join(OBJECTS).join("abc#1");
    fs::write(&half, "half").unwrap();
    let archive = Archive::open(dir.path(), &store).unwrap();
    assert!(!half.exists());
    archive.take(1).await.unwrap();
    assert_eq!(fs::read(&object).unwrap(), bytes);
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1..=10));
}

#[tokio::test]
async fn old_segments_are_forgotten_everywhere_and_the_open_one_never() {
    let (dir, archive) = archived().await;
    let at = |units| UNIX_EPOCH + Duration::from_millis(START_MS + units);
    assert_eq!(archive.forget_before(at(4)).await.unwrap(), 0);
    assert_eq!(archive.forget_before(at(5)).await.unwrap(), 1);
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(5..=10));
    assert_eq!(archive.verify().await.unwrap().findings, []);
    let left = |name: &str| {
        fs::read_dir(dir.path().join("archive").join(name))
            .unwrap()
            .count()
    };
    assert_eq!((left("objects"), left("segments")), (1, 1));
    // A kill in the middle of it: what was begun counts for nothing and is ended.
    archive.manifest.begin_forgetting(2).unwrap();
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(9..=10));
    assert_eq!(archive.forget_before(at(5)).await.unwrap(), 1);
    assert_eq!((left("objects"), left("segments")), (0, 0));
    let later = SystemTime::now() + Duration::from_secs(9);
    assert_eq!(archive.forget_before(later).await.unwrap(), 0);
    assert_eq!(forget_files_before(dir.path(), later, 3).unwrap(), 0);
    assert_eq!(numbers(dir.path()).unwrap(), [3]);
}

#[tokio::test]
async fn old_files_go_without_a_store_but_not_what_the_journal_may_still_cut() {
    let dir = log();
    let now = SystemTime::now();
    let (earlier, later) = (now - Duration::from_secs(9), now + Duration::from_secs(9));
    assert_eq!(forget_files_before(dir.path(), earlier, 3).unwrap(), 0);
    // Nothing removes a directory like a file, and the other goes all the same.
    fs::remove_file(segment_path(dir.path(), 1)).unwrap();
    fs::create_dir(segment_path(dir.path(), 1)).unwrap();
    assert!(forget_files_before(dir.path(), later, 3).is_err());
    assert_eq!(numbers(dir.path()).unwrap(), [1, 3]);
    fs::remove_dir(segment_path(dir.path(), 1)).unwrap();
    assert_eq!(forget_files_before(dir.path(), later, 3).unwrap(), 0);
}

/// Between the directory's entry and the end of the file: the one step that no store sees.
#[tokio::test]
async fn a_file_that_came_back_is_taken_again() {
    let dir = log();
    let archive = Archive::open(dir.path(), &folder(dir.path())).unwrap();
    let path = segment_path(dir.path(), 1);
    let bytes = fs::read(&path).unwrap();
    archive.take(1).await.unwrap();
    fs::write(&path, &bytes).unwrap();
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1..=10));
    assert_eq!(archive.verify().await.unwrap().findings, []);
    assert_eq!(waiting(dir.path(), 3).unwrap(), [1, 2]);
    archive.take(1).await.unwrap();
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1..=10));
    // Another file under that number is neither.
    let another = segment_path(dir.path(), 2);
    let mut head = fs::read(&another).unwrap();
    head[16] = 1;
    fs::write(&path, &head).unwrap();
    assert!(matches!(
        archive.take(1).await,
        Err(ArchiveError::Conflict { .. })
    ));
}
