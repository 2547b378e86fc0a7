//! The README's snippets, run as they stand there and in its order. Only addresses and folders are replaced, and each
//! replacement is checked to have met something.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use claimcheck_tests::{Demo, binary, eventually, in_world};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::sdk;

const README: &str = include_str!("../../README.md");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const LIMIT: Duration = Duration::from_mins(1);
const DEMO: &str = "http://127.0.0.1:8080";
const RECEIVER: &str = "http://127.0.0.1:4000";
const PROGRAMS: &str = "$HOME/.cache/claimcheck/target/release";

/// Every block of the README that is there to be run, by its heading and language.
const SNIPPETS: [(&str, &str); 9] = [
    ("Two commands", "sh"),
    ("From a program", "sh"),
    ("By a webhook", "python"),
    ("By a webhook", "sh"),
    ("From the command line", "sh"),
    ("As a batch", "sh"),
    ("With OpenAI's library", "sh"),
    ("With OpenAI's library", "python"),
    ("Without the servers", "sh"),
];

struct Snippet {
    heading: String,
    language: String,
    text: String,
}

fn snippets() -> Vec<Snippet> {
    let (mut found, mut heading) = (Vec::new(), String::new());
    let mut lines = README.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push(Snippet {
                heading: heading.clone(),
                language: language.to_owned(),
                text: text.join("\n"),
            });
        } else if line.starts_with('#') {
            line.trim_start_matches('#').trim().clone_into(&mut heading);
        }
    }
    found
}

fn snippet(heading: &str, language: &str) -> String {
    let found = snippets()
        .into_iter()
        .find(|snippet| snippet.heading == heading && snippet.language == language);
    found.unwrap_or_else(|| panic!("no {language} under {heading}")).text
}

fn replaced(text: &str, what: &str, by: &str) -> String {
    assert!(text.contains(what), "{what} is not in {text}");
    text.replace(what, by)
}

/// Somebody who follows the README with the demo running.
struct Newcomer {
    home: PathBuf,
    /// What `$api` and `$token` are by then.
    above: String,
}

impl Newcomer {
    /// A shell that ends at the first command that fails.
    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &format!("{}\n{script}", self.above)])
            .current_dir(&self.home)
            .env("HOME", &self.home)
            .env("NO_PROXY", "127.0.0.1")
            .env("no_proxy", "127.0.0.1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        shell
    }

    async fn runs(&self, script: &str) -> String {
        good(self.shell(script).output().await.expect("bash runs"))
    }
}

fn good(output: Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}{told}");
    said
}

/// The JSON values that a snippet printed one after the other.
fn values(said: &str) -> Vec<Value> {
    let values = serde_json::Deserializer::from_str(said).into_iter();
    values
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn every_snippet_of_the_readme_is_one_that_is_run_here() {
    let found = snippets();
    let runnable: Vec<_> = found
        .iter()
        .filter(|snippet| !snippet.language.is_empty())
        .map(|snippet| (snippet.heading.as_str(), snippet.language.as_str()))
        .collect();
    assert_eq!(runnable, SNIPPETS);
    let pairs = README.lines().zip(README.lines().skip(1));
    let crowded: Vec<_> = pairs
        .filter(|(before, line)| {
            line.trim_start_matches('#').starts_with(' ') && line.starts_with("##") && !before.is_empty()
        })
        .collect();
    assert!(crowded.is_empty(), "headings stand alone: {crowded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_readme_shows_works_as_it_stands_with_the_demo_running() {
    let libraries = tokio::task::spawn_blocking(sdk::libraries).await.unwrap();
    in_world(async |world| {
        let commands = snippet("Two commands", "sh");
        let start = commands.lines().next().expect("a command").to_owned();
        assert!(start.starts_with("./compose/demo "), "{start}");
        let demo = Demo::start(world, &start).await;
        assert!(demo.said.contains("The completion ("), "{}", demo.said);
        let home = demo.folder().join("home");
        std::fs::create_dir(&home).unwrap();
        let mut newcomer = Newcomer {
            home,
            above: String::new(),
        };
        newcomer.above = from_a_program(&newcomer, &demo).await;
        by_a_webhook(&newcomer, &demo).await;
        from_the_command_line(&newcomer, &demo).await;
        as_a_batch(&newcomer).await;
        with_openais_library(&newcomer, &demo, &libraries).await;
    })
    .await;
}

/// Answers what defines `$api` and `$token` as they are then.
async fn from_a_program(newcomer: &Newcomer, demo: &Demo) -> String {
    let program = program(demo);
    let said = newcomer.runs(&format!("{program}\nprintf '\"%s\"' \"$token\"")).await;
    let said = values(&said);
    let [account, job, receipt, Value::String(token)] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(account["username"], "ada");
    assert_eq!(
        (&job["status"], &job["parameters"]["seed"]),
        (&"completed".into(), &7.into())
    );
    assert_eq!(
        (&receipt["object"], &receipt["job_id"]),
        (&"job.receipt".into(), &job["id"])
    );
    format!("api={} token={token}", demo.url)
}

fn program(demo: &Demo) -> String {
    replaced(&snippet("From a program", "sh"), DEMO, &demo.url)
}

async fn by_a_webhook(newcomer: &Newcomer, demo: &Demo) {
    std::fs::write(newcomer.home.join("receiver.py"), snippet("By a webhook", "python")).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("http://127.0.0.1:{port}");
    let registers = replaced(&snippet("By a webhook", "sh"), RECEIVER, &url);
    // The last command becomes the process, so that its end is the receiver's.
    let registers = replaced(&registers, "python3 receiver.py", "exec python3 receiver.py");
    let mut shell = newcomer.shell(&registers);
    shell
        .env("PORT", port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut receiver = shell.spawn().expect("bash runs");
    let mut printed = BufReader::new(receiver.stdout.take().unwrap()).lines();
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let forged = eventually("the receiver listens", LIMIT, async || {
        let forged = client.post(&url).header("webhook-signature", "v1,forged").body("{}");
        forged.send().await.ok()
    })
    .await;
    assert_eq!(forged.status(), StatusCode::UNAUTHORIZED);
    // "Now submit a job as above."
    let said = newcomer.runs(&program(demo)).await;
    let id = values(&said)[1]["id"].as_str().unwrap().to_owned();
    let line = tokio::time::timeout(LIMIT, printed.next_line()).await;
    let line = line.expect("it is told in time").unwrap();
    assert_eq!(line, Some(format!("job.completed {}/v1/jobs/{id}", demo.url)));
    receiver.kill().await.unwrap();
}

async fn from_the_command_line(newcomer: &Newcomer, demo: &Demo) {
    let script = replaced(&snippet("From the command line", "sh"), DEMO, &demo.url);
    let programs = binary("claimcheck");
    let script = replaced(&script, PROGRAMS, &programs.parent().unwrap().display().to_string());
    let said = newcomer.runs(&script).await;
    let listed = said
        .lines()
        .filter(|line| line.contains("job_") && line.contains("completed"));
    assert_eq!(listed.count(), 1, "{said}");
}

async fn as_a_batch(newcomer: &Newcomer) {
    let script = snippet("As a batch", "sh");
    let said = newcomer.runs(&format!("{script}\nprintf '\"%s\"' \"$batch\"")).await;
    let said = values(&said);
    assert_eq!(said[0]["request_counts"]["total"], 3, "{said:?}");
    let batch = said.last().and_then(Value::as_str).unwrap();
    assert_eq!(said[0]["id"], batch);
    // What the last line of the snippet shows, until it shows all.
    let results = replaced(script.lines().last().unwrap(), "$batch", batch);
    let lines = eventually("the lines are done", LIMIT, async || {
        Some(values(&newcomer.runs(&results).await)).filter(|lines| lines.len() == 3)
    })
    .await;
    let mut names: Vec<_> = lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["story-1", "story-2", "story-3"]);
    assert!(
        lines.iter().all(|line| line["response"]["status_code"] == 200),
        "{lines:?}"
    );
}

async fn with_openais_library(newcomer: &Newcomer, demo: &Demo, libraries: &std::path::Path) {
    let exports = replaced(&snippet("With OpenAI's library", "sh"), DEMO, &demo.url);
    let python = snippet("With OpenAI's library", "python");
    std::fs::write(newcomer.home.join("story.py"), python).unwrap();
    let newest = libraries.join(format!("python-{}/bin/python", sdk::PYTHON_VERSIONS[2]));
    let said = newcomer
        .runs(&format!("{exports}\n{} story.py", newest.display()))
        .await;
    // The whole text and a line's end, the same in pieces, then another one.
    let whole = (1..said.len()).find(|end| {
        let (Some(text), Some(rest)) = (said.get(..*end), said.get(*end..)) else {
            return false;
        };
        rest.strip_prefix('\n')
            .and_then(|rest| rest.strip_prefix(text))
            .is_some_and(|rest| rest.len() > 1)
    });
    assert!(whole.is_some(), "the stream is the text: {said}");
}

#[tokio::test]
async fn what_the_readme_shows_without_the_servers_works_as_it_stands() {
    let commands = snippet("Without the servers", "sh");
    let worker = binary("claimcheck-worker").display().to_string();
    let commands = replaced(&commands, "cargo run --release --bin claimcheck-worker --", &worker);
    // GPT-2's own size is for a quiet machine.
    let commands = replaced(&commands, "--random gpt2", "--random tiny");
    let run = async |command: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", command]).current_dir(ROOT).kill_on_drop(true);
        good(shell.output().await.expect("bash runs"))
    };
    let [generate, bench] = commands.lines().collect::<Vec<_>>()[..] else {
        panic!("{commands}")
    };
    let text = run(generate).await;
    assert!(text.split_whitespace().count() > 10, "{text}");
    let figures = run(bench).await;
    let measured: Vec<_> = figures
        .lines()
        .filter(|line| line.starts_with("batch"))
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    assert_eq!(measured.len(), 3, "a line for each batch: {figures}");
    for (measured, batch) in measured.iter().zip(["1", "8", "32"]) {
        assert!(measured.ends_with(batch), "{figures}");
    }
}
