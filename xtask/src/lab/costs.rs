//! The costs in the report of `vgic-vmm --stats json`, as lines of the table: exits, calls into KVM
//! and kicks for each interrupt of a storm.

use serde_json::Value;

/// Returns the lines, with instructions if one takes a nanosecond; `None` if `json` is not such a
/// report.
pub(super) fn lines(json: &str, counting: bool) -> Option<Vec<String>> {
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
        let each = |count: u64| count as f64 / delivered as f64;
        let exits = each(call("kvm_run")?);
        let mut parts = vec![format!("{exits:.2} exits")];
        if counting {
            parts.push(format!("{:.0} instructions", each(number(storm, "cpu_nanoseconds")?)));
        }
        // Counts of zero are left out, except kicks, where a zero is worth a report.
        let mut add = |what, count| {
            if each(count) >= 0.005 {
                parts.push(format!("{:.2} {what}", each(count)));
            }
        };
        add("KVM_IRQ_LINE", call("kvm_irq_line")?);
        add("KVM_SIGNAL_MSI", call("kvm_signal_msi")?);
        add("other calls", call("other")?);
        if let Some(kicks) = number(storm, "kicks") {
            parts.push(format!("{:.2} kicks", each(kicks)));
        }
        let paced = if storm.get("paced")?.as_bool()? { ", paced" } else { "" };
        let (sent, events) = (number(storm, "sent")?, number(storm, "events")?);
        let costs = match delivered {
            0 => String::new(),
            _ => format!("; for each: {}", parts.join(", ")),
        };
        lines.push(format!(
            "COST  storm{paced}: {sent} MSIs of {events} events, {delivered} interrupts{costs}"
        ));
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::lines;

    const REPORT: &str = r#"{"gic":"v2","end":"off","msis":5100,"ioctls":{"kvm_run":90,"kvm_irq_line":7,"kvm_signal_msi":0,"other":2},
        "storms":[{"paced":true,"threads":2,"events":64,"sent":5000,"delivered":200,"cpu_nanoseconds":9000,"exits":500,"gic_exits":450,
        "ioctls":{"kvm_run":500,"kvm_irq_line":400,"kvm_signal_msi":0,"other":1},"kicks":210}],"vcpus":[],"engine":[]}"#;

    #[test]
    fn storms_cost_so_much_for_each_interrupt() {
        let lines = lines(REPORT, false).unwrap();
        assert!(lines[0].starts_with("COST  all: 90 exits; KVM_IRQ_LINE 7,"), "{}", lines[0]);
        assert!(lines[1].contains("storm, paced: 5000 MSIs of 64 events, 200 interrupts"));
        assert!(
            lines[1].ends_with(
                "; for each: 2.50 exits, 2.00 KVM_IRQ_LINE, 0.01 other calls, 1.05 kicks"
            )
        );
    }

    #[test]
    fn a_kernel_does_not_tell_its_kicks_and_nothing_is_divided_by_nothing() {
        let json = REPORT.replace("\"kicks\":210", "\"kicks\":null");
        assert!(lines(&json, false).unwrap()[1].ends_with("2.00 KVM_IRQ_LINE, 0.01 other calls"));
        let json = REPORT.replace("\"delivered\":200", "\"delivered\":0");
        assert!(lines(&json, false).unwrap()[1].ends_with("events, 0 interrupts"));
        assert!(lines("{\"another\":1}", true).is_none() && lines("{", true).is_none());
    }

    #[test]
    fn a_nanosecond_can_be_an_instruction() {
        let lines = lines(REPORT, true).unwrap();
        assert!(lines[1].contains("; for each: 2.50 exits, 45 instructions, 2.00"), "{}", lines[1]);
    }
}
