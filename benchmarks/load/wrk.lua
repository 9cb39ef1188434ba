-- POST the bodies of a file (each after its length, 4 bytes, big-endian) in turn; a JSON line at the end.
--   wrk -s wrk.lua URL -- BODIES CONTENT_TYPE
local requests, turn = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local headers = {["Content-Type"] = args[2]}
  while true do
    local head = file:read(4)
    if not head then break end
    local a, b, c, d = head:byte(1, 4)
    local body = file:read(((a * 256 + b) * 256 + c) * 256 + d)
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
  file:close()
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '\nJSON {"seconds": %f, "answers": %d, "errors": %d, "refused": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.duration / 1e6, summary.requests, e.connect + e.read + e.write + e.timeout, e.status,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
