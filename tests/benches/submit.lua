-- What wrk sends, and what it has found in the end: one line of JSON.
wrk.method = "POST"
wrk.body = os.getenv("BODY")
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer " .. os.getenv("TOKEN")

function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format(
        '{"answered": %d, "refused": %d, "failed": %d, "seconds": %f, "p50": %f, "p99": %f}\n',
        summary.requests, errors.status, failed, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
    ))
end
