"""What a network counts, in the order in which its process publishes it."""

COUNTERS = (
    "ports", "rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "tx_dropped", "malformed", "spoofed", "refused",
    "switched", "tcp_open", "tcp_opened", "tcp_refused", "tcp_resets", "tcp_retransmitted", "tcp_dropped", "tcp_held",
    "udp_open", "udp_dropped", "dns_questions", "dns_failed", "errors",
)
