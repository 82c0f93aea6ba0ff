//! What `vgic-vmm --stats json` says a guest has cost, as lines of the table: exits, calls into KVM and kicks for each interrupt of a storm.

use serde_json::Value;

/// The lines; `None` if it is no such report.
pub(super) fn lines(json: &str) -> Option<Vec<String>> {
    let report: Value = serde_json::from_str(json).ok()?;
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64);
    let ioctls = report.get("ioctls")?;
    let call = |name| number(ioctls, name);
    let mut lines = vec![format!(
        "COST  all: {} exits; KVM_IRQ_LINE {}, KVM_SIGNAL_MSI {}, other calls {}; {} MSIs",
        call("kvm_run")?,
        call("kvm_irq_line")?,
        call("kvm_signal_msi")?,
        call("other")?,
        number(&report, "msis")?,
    )];
    for storm in report.get("storms")?.as_array()? {
        let delivered = number(storm, "delivered")?;
        let ioctls = storm.get("ioctls")?;
        let call = |name| number(ioctls, name);
        let each = |count: u64| match delivered {
            0 => "-".to_owned(),
            _ => format!("{:.2}", count as f64 / delivered as f64),
        };
        let kicks = number(storm, "kicks").map_or("in the kernel".into(), each);
        let signals = number(storm, "signals").map_or("-".into(), each);
        let paced = storm.get("paced")?.as_bool()?;
        lines.push(format!(
            "COST  storm{}: {} MSIs of {} events, {delivered} interrupts; for each: exits {}, KVM_IRQ_LINE {}, KVM_SIGNAL_MSI {}, other calls {}, kicks {kicks} \
             (signals {signals})",
            if paced { ", paced" } else { "" },
            number(storm, "sent")?,
            number(storm, "events")?,
            each(call("kvm_run")?),
            each(call("kvm_irq_line")?),
            each(call("kvm_signal_msi")?),
            each(call("other")?),
        ));
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::lines;

    const REPORT: &str = r#"{"gic":"v2","end":"off","msis":5100,"ioctls":{"kvm_run":90,"kvm_irq_line":7,"kvm_signal_msi":0,"other":2},
        "storms":[{"paced":true,"threads":2,"events":64,"sent":5000,"delivered":200,"exits":500,"gic_exits":450,
        "ioctls":{"kvm_run":500,"kvm_irq_line":400,"kvm_signal_msi":0,"other":1},"kicks":210,"signals":0}],"vcpus":[],"engine":[]}"#;

    #[test]
    fn storms_cost_so_much_for_each_interrupt() {
        let lines = lines(REPORT).unwrap();
        assert!(lines[0].starts_with("COST  all: 90 exits; KVM_IRQ_LINE 7,"), "{}", lines[0]);
        assert!(lines[1].contains("storm, paced: 5000 MSIs of 64 events, 200 interrupts"));
        assert!(lines[1].contains("exits 2.50, KVM_IRQ_LINE 2.00, KVM_SIGNAL_MSI 0.00"));
        assert!(lines[1].ends_with("other calls 0.01, kicks 1.05 (signals 0.00)"), "{}", lines[1]);
    }

    #[test]
    fn a_kernel_does_not_tell_its_kicks_and_nothing_is_divided_by_nothing() {
        let json = REPORT.replace("\"kicks\":210,\"signals\":0", "\"kicks\":null,\"signals\":null");
        assert!(lines(&json).unwrap()[1].ends_with("kicks in the kernel (signals -)"));
        let json = REPORT.replace("\"delivered\":200", "\"delivered\":0");
        assert!(lines(&json).unwrap()[1].contains("exits -,"));
        assert!(lines("{\"another\":1}").is_none() && lines("{").is_none());
    }
}
