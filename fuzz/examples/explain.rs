//! `explain FILE...`: the steps of inputs, such as libFuzzer leaves in `fuzz/artifacts`.

use std::{env, fs, io};

fn main() -> io::Result<()> {
    for file in env::args_os().skip(1) {
        println!("{}:", file.display());
        vgic_fuzz::explain(&fs::read(&file)?).for_each(|step| println!("    {step}"));
    }
    Ok(())
}
