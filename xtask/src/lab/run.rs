//! `cargo xtask lab run`: runs one command on an arm64 KVM host, for development.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::cross;
use super::kit::Kit;
use super::venue::{self, Event, Job};

#[derive(Args)]
pub(super) struct RunArgs {
    /// The time limit, in seconds
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// A file to provide as $LAB/files/NAME; may be given several times
    #[arg(long)]
    file: Vec<PathBuf>,
    /// A program to build and provide as $LAB/bin/NAME; may be given several times
    #[arg(long)]
    with: Vec<String>,
    /// A workspace program, a static arm64 program or `sh`, and arguments, in which the host's
    /// shell expands $LAB (guest/Image, guest/initrd.cpio and payloads/NAME.bin are there)
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let kit = Kit::new()?;
    let mut files = kit.files();
    let (program, arguments) = args.command.split_first().context("no command")?;
    let mut words = vec![match program.as_str() {
        "sh" => "sh".to_owned(),
        path if path.contains('/') => {
            let path = PathBuf::from(path);
            let name = path.file_name().context("a program's name")?.to_string_lossy().into_owned();
            let name = format!("bin/{name}");
            files.push((name.clone(), path));
            format!("$LAB/{name}")
        }
        name => {
            files.push((format!("bin/{name}"), cross::program(name)?));
            format!("$LAB/bin/{name}")
        }
    }];
    for name in &args.with {
        files.push((format!("bin/{name}"), cross::program(name)?));
    }
    for file in &args.file {
        let name = file.file_name().context("a file's name")?.to_string_lossy();
        files.push((format!("files/{name}"), file.clone()));
    }
    words.extend(arguments.iter().map(|word| quoted(word)));
    let job = Job {
        name: program.clone(),
        prepare: String::new(),
        command: words.join(" "),
        limit: Duration::from_secs(args.limit),
    };
    let venue = venue::venue(false);
    println!("on {}", venue.describe());
    println!("$ {}", job.command);
    let mut exit = None;
    venue.run(&[job], &files, &kit.debian, &mut |event| match event {
        Event::Begin(_) => {}
        Event::Line(line) => println!("{line}"),
        Event::Exit(status) => exit = Some(*status),
    })?;
    match exit {
        Some(0) => Ok(()),
        Some(137) => bail!("killed: it took more than {} s", args.limit),
        Some(status) => bail!("exit status {status}"),
        None => bail!("the host ended before it did"),
    }
}

/// Quotes a word with double quotes, so that `$LAB` is expanded and spaces are kept.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        if matches!(c, '"' | '\\' | '`') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}
