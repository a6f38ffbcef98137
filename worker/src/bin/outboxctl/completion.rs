//! `outboxctl completion`.

use clap::{Args, Command};
use clap_complete::Shell;

const EXAMPLES: &str = "Examples:
  source <(outboxctl completion bash)
  outboxctl completion zsh > \"${fpath[1]}/_outboxctl\"
  outboxctl completion fish > ~/.config/fish/completions/outboxctl.fish";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints what a shell needs to complete commands, options and their values.
pub(crate) fn completion(args: &CompletionArgs, mut command: Command) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "outboxctl", &mut script);
    crate::print::say(String::from_utf8_lossy(&script).trim_end());
}
