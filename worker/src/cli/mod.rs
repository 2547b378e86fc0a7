//! The command line, one file a subcommand.
//!
//! A worker that cannot go on exits with 1; a tool (`generate`, `bench`) that refuses its arguments or its model exits
//! with 2, as the parser of the arguments does. Either way there is one line on standard error.

mod audit;
mod bench;
mod generate;
mod number;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::audit::AuditArgs;
use self::bench::BenchArgs;
use self::generate::GenerateArgs;
use self::run::RunArgs;

const REFUSED: u8 = 2;

/// Claimcheck's worker: takes jobs from the queue, runs the model, settles the results.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the worker process until SIGTERM or SIGINT (the default).
    Run(RunArgs),
    /// Continues one prompt with the worker's engine, without any server.
    Generate(GenerateArgs),
    /// Measures the model alone: tokens a second when reading prompts and when writing.
    Bench(BenchArgs),
    /// Looks whether the audit log is as it was written, or lets its old months go.
    Audit(AuditArgs),
}

impl Cli {
    /// Runs what the command line names, and says on standard error why it could not.
    pub async fn execute(self) -> ExitCode {
        let (outcome, code) = match self.command.unwrap_or(Command::Run(self.run)) {
            Command::Run(args) => (run::run(args).await, ExitCode::FAILURE),
            Command::Generate(args) => (generate::run(args).await, ExitCode::from(REFUSED)),
            Command::Audit(args) => (audit::run(args).await, ExitCode::FAILURE),
            Command::Bench(args) => (bench::run(args).await, ExitCode::from(REFUSED)),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // One line, whatever RUST_BACKTRACE says: a supervisor shows it to somebody.
                eprintln!("claimcheck-worker: {error:#}");
                code
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["claimcheck-worker"].iter().chain(line))
    }

    async fn execute(line: &[&str]) -> ExitCode {
        parse(line).expect("arguments that are taken").execute().await
    }

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_tools_take_their_options_together() {
        let bench = [
            "bench",
            "--random",
            "tiny",
            "--save",
            "x",
            "--batch",
            "1,8,32",
            "--prompt-tokens",
            "6",
        ];
        let bench = [&bench[..], &["--new-tokens", "7", "--rounds", "2", "--json"]].concat();
        let generate = [
            "generate",
            "--model",
            "x",
            "--model-revision",
            "y",
            "--prompt",
            "- z",
            "--max-tokens",
            "5",
        ];
        let more = [
            "--temperature",
            "0",
            "--top-p",
            "0.5",
            "--top-k",
            "4",
            "--seed",
            "-1",
            "--n",
            "2",
            "--json",
        ];
        let newer = [
            "--min-p",
            "0.1",
            "--repetition-penalty",
            "1.2",
            "--presence-penalty",
            "-1",
            "--frequency-penalty",
            "0.5",
            "--logit-bias",
            "3=-100",
            "--logit-bias",
            "4=2",
            "--logprobs",
            "5",
            "--stop-token-id",
            "7",
        ];
        let generate = [&generate[..], &more, &newer, &["--stop", "a", "--stop", "b"]].concat();
        let spec = vec!["bench", "--dtype", "f32", "spec.json"];
        let scenario = vec![
            "bench",
            "--random",
            "gpt2",
            "--scenario",
            "long-prompt",
            "--token-budget",
            "96",
        ];
        for line in [bench, vec!["bench", "--model", "x"], spec, scenario, generate] {
            assert!(parse(&line).is_ok(), "{line:?}: {}", parse(&line).unwrap_err());
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        for line in [
            "bench",
            "bench --model x --random tiny",
            "bench --random unheard-of",
            "bench --dtype f32",
            "bench --model x --dtype f31",
            "bench --model x spec.json",
            "bench --random tiny spec.json",
            "bench --batch 1 spec.json",
            "bench --model-revision y spec.json",
            "bench --save y spec.json",
            "bench --model x --save y",
            "bench --random tiny --model-revision y",
            "bench --model x --batch 0",
            "bench --model x --scenario unheard-of",
            "bench --model x --token-budget 64",
            "bench --scenario lengths spec.json",
            "bench --model x --batch 1,,2",
            "bench --model x --rounds 0",
            "generate --model x",
            "generate --prompt x",
            "generate --model x --prompt y --temperature 2.1",
            "generate --model x --prompt y --top-p nan",
            "generate --model x --prompt y --top-k 0",
            "generate --model x --prompt y --max-tokens 0",
            "generate --model x --prompt y --n 6",
            "generate --model x --prompt y --min-p 1.1",
            "generate --model x --prompt y --repetition-penalty 0",
            "generate --model x --prompt y --presence-penalty 3",
            "generate --model x --prompt y --logit-bias 3",
            "generate --model x --prompt y --json --logprobs 6",
        ] {
            let words: Vec<_> = line.split(' ').collect();
            assert!(parse(&words).is_err(), "{line}");
        }
    }

    #[test]
    fn a_worker_without_a_slot_is_refused_with_code_2() {
        for line in [&["--slots", "0"][..], &["run", "--slots", "0"]] {
            let refused = parse(line).map(|_| ()).unwrap_err();
            assert_eq!(refused.exit_code(), i32::from(REFUSED), "{refused}");
        }
        assert!(parse(&["run", "--slots", "1"]).is_ok());
    }

    #[tokio::test]
    async fn what_bench_saves_is_a_model_that_both_tools_take() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("random").display().to_string();
        let short = [
            "--batch",
            "1,2",
            "--prompt-tokens",
            "3",
            "--new-tokens",
            "2",
            "--rounds",
            "1",
        ];
        let save = [&["bench", "--random", "tiny", "--save", &folder], &short[..]].concat();
        assert_eq!(execute(&save).await, ExitCode::SUCCESS);
        let again = [&["bench", "--model", &folder], &short[..]].concat();
        assert_eq!(execute(&again).await, ExitCode::SUCCESS);
        let generate = ["generate", "--model", &folder, "--prompt", "Once", "--max-tokens", "3"];
        assert_eq!(execute(&generate).await, ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn a_tool_that_cannot_load_its_model_ends_with_code_2() {
        let empty = tempfile::tempdir().unwrap();
        let missing = empty.path().join("no/such/folder").display().to_string();
        for folder in [missing, empty.path().display().to_string()] {
            let generate = ["generate", "--model", &folder, "--prompt", "x"];
            assert_eq!(execute(&generate).await, ExitCode::from(REFUSED), "{folder}");
            assert_eq!(
                execute(&["bench", "--model", &folder]).await,
                ExitCode::from(REFUSED),
                "{folder}"
            );
        }
    }
}
