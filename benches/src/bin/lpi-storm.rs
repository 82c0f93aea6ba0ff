//! Sends a storm of LPIs through an engine, and accounts for every one: see
//! [`vgic_benches::storm`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vgic_benches::storm::main()
}
