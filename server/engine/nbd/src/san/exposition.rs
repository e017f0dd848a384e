//! A gateway's numbers in Prometheus' text format.

use std::fmt::Write;

use super::counters::Status;

const GAUGES: [(&str, &str); 4] = [
    ("cache_up", "Whether the cache is used."),
    ("san_up", "Whether the SAN answers."),
    (
        "cache_latency_us",
        "Mean latency of short reads from the cache, lately, in microseconds.",
    ),
    (
        "san_latency_us",
        "Mean latency of short reads from the SAN, lately, in microseconds.",
    ),
];

pub fn exposition(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}"); // a String takes it
    };
    for (name, value) in &status.counters {
        line(format_args!("# TYPE tmem_san_{name}_total counter"));
        line(format_args!("tmem_san_{name}_total {value}"));
    }
    let values = [
        u64::from(status.cache_down.is_none()),
        u64::from(status.san_down.is_none()),
        status.cache_micros,
        status.san_micros,
    ];
    for ((name, help), value) in GAUGES.iter().zip(values) {
        line(format_args!("# HELP tmem_san_{name} {help}"));
        line(format_args!("# TYPE tmem_san_{name} gauge"));
        line(format_args!("tmem_san_{name} {value}"));
    }
    let name = "tmem_san_read_seconds";
    line(format_args!(
        "# HELP {name} Latency of reads, by who answered them."
    ));
    line(format_args!("# TYPE {name} histogram"));
    for (source, latency) in [
        ("cache", &status.hit_latency),
        ("san", &status.miss_latency),
    ] {
        let (buckets, count, micros) = latency;
        for (bound, below) in buckets {
            let bound = seconds(*bound);
            line(format_args!(
                "{name}_bucket{{source=\"{source}\",le=\"{bound}\"}} {below}"
            ));
        }
        line(format_args!(
            "{name}_bucket{{source=\"{source}\",le=\"+Inf\"}} {count}"
        ));
        line(format_args!(
            "{name}_sum{{source=\"{source}\"}} {}",
            *micros as f64 / 1e6
        ));
        line(format_args!("{name}_count{{source=\"{source}\"}} {count}"));
    }
    text
}

/// As C's `%g` writes it: the buckets' bounds are labels, and stay what they were.
fn seconds(micros: u64) -> String {
    let value = micros as f64 / 1e6;
    let scientific = format!("{value:.5e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |digits: &str| {
        digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_string()
    };
    match exponent {
        ..-4 => format!("{}e-{:02}", trimmed(digits), -exponent),
        _ => trimmed(&format!("{value:.*}", (5 - exponent).max(0) as usize)),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn bounds_are_written_as_ever() {
        let written: Vec<_> = [16, 32, 64, 128, 1024, 65536, 1 << 20, 1 << 21]
            .map(seconds)
            .into();
        let ever = [
            "1.6e-05", "3.2e-05", "6.4e-05", "0.000128", "0.001024", "0.065536", "1.04858",
            "2.09715",
        ];
        assert_eq!(written, ever);
    }
}
