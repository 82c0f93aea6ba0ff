//! `explain FILE...` prints the steps of fuzz inputs, such as those that libFuzzer leaves in
//! `fuzz/artifacts`. Inputs in a directory named `its` are decoded for the target `its`.

use std::path::Path;
use std::{env, fs, io};

use vgic_fuzz::Frame;

fn main() -> io::Result<()> {
    for file in env::args_os().skip(1) {
        println!("{}:", file.display());
        let its = Path::new(&file).parent().is_some_and(|dir| dir.ends_with("its"));
        let frame = if its { Frame::Its } else { Frame::Gicr };
        for step in vgic_fuzz::explain(frame, &fs::read(&file)?) {
            println!("    {step}");
        }
    }
    Ok(())
}
