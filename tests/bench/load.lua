-- Load for the benchmark: every request has a new body, the tokens take turns, and every answer is counted.
--
-- wrk -t1 -cC -dLONG -s load.lua URL -- CONNECTIONS TOKENS TEMPLATE PATH SECONDS LIMIT ITEMS SEED
--
-- TOKENS: a file of lines `device_id instance_id token`. TEMPLATE: a file with one body; $device, $instance, $time,
-- $uuid and $fresh stand for what changes. SECONDS, LIMIT: no request is sent after so many seconds or requests (0: no
-- limit); what is under way then is waited for, so that what is counted is what was stored. ITEMS: 0 for single bodies,
-- else prompts in a batch. SEED: 12 hex digits that no other run has.
--
-- The report is one line of JSON on standard output. Latency is timed here, by the request id that the answer repeats:
-- wrk's own figures are corrected for coordinated omission, which can't be undone.

local ffi = require("ffi")
ffi.cdef([[
typedef struct { long seconds; long nanoseconds; } bench_timespec;
int clock_gettime(int clock, bench_timespec *time);
int getpid(void);
int kill(int pid, int signal);
]])

local REALTIME, MONOTONIC, SIGINT = 0, 1, 2
local FAR_AWAY_MS = 1000000000

local clock_result = ffi.new("bench_timespec")
local function microseconds(clock)
    ffi.C.clock_gettime(clock, clock_result)
    return tonumber(clock_result.seconds) * 1000000 + math.floor(tonumber(clock_result.nanoseconds) / 1000)
end

local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

local connections, seconds, limit, items, seed, head
local devices, instances, tokens = {}, {}, {}
local pieces = {}
local turn, bodies, verified, sent, answered, granted, parked = 0, 0, false, 0, 0, 0, 0
local first_us, last_us, deadline_us
local began, latencies = {}, {}
local statuses, item_statuses = {}, {}
local sample = ""
report = ""

local function pieces_of(template)
    local found, position = {}, 1
    while true do
        local from, to, name = template:find("%$(%l+)", position)
        if not from then
            break
        end
        table.insert(found, template:sub(position, from - 1))
        table.insert(found, { name = name })
        position = to + 1
    end
    table.insert(found, template:sub(position))
    return found
end

function init(arguments)
    connections, seconds, limit = tonumber(arguments[1]), tonumber(arguments[5]), tonumber(arguments[6])
    items, seed = tonumber(arguments[7]), arguments[8]
    for line in io.lines(arguments[2]) do
        local device, instance, token = line:match("^(%S+) (%S+) (%S+)$")
        table.insert(devices, device)
        table.insert(instances, instance)
        table.insert(tokens, token)
    end
    -- Runs begin at different devices.
    turn = tonumber(seed:sub(1, 6), 16) % #tokens
    local file = assert(io.open(arguments[3]))
    pieces = pieces_of(file:read("*a"))
    file:close()
    head = "POST " .. arguments[4] .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
        .. "\r\nContent-Type: application/json\r\nAuthorization: Bearer "
end

-- The pieces of a batch's items, with what they have in common filled in.
local function pieces_for(values)
    local merged, run = {}, ""
    for _, piece in ipairs(pieces) do
        local text = type(piece) == "table" and values[piece.name] or piece
        if type(text) == "table" then
            table.insert(merged, run)
            table.insert(merged, text)
            run = ""
        else
            run = run .. text
        end
    end
    table.insert(merged, run)
    return merged
end

local filled = {}
local function item_of(merged)
    bodies = bodies + 1
    local uuid = string.format("%s-%s-4000-8000-%012x", seed:sub(1, 8), seed:sub(9, 12), bodies)
    for position = 1, #merged do
        local piece = merged[position]
        if type(piece) == "table" then
            filled[position] = piece.name == "uuid" and uuid or string.format("%s-%d", seed, bodies)
        else
            filled[position] = piece
        end
    end
    return table.concat(filled, "", 1, #merged)
end

local function body_of(index)
    bodies = bodies + 1
    local values = {
        device = devices[index],
        instance = instances[index],
        time = string.format("%d", math.floor(microseconds(REALTIME) / 1000)),
        uuid = string.format("%s-%s-4000-8000-%012x", seed:sub(1, 8), seed:sub(9, 12), bodies),
        fresh = string.format("%s-%d", seed, bodies),
    }
    for position = 1, #pieces do
        local piece = pieces[position]
        filled[position] = type(piece) == "table" and values[piece.name] or piece
    end
    return table.concat(filled, "", 1, #pieces)
end

function request()
    turn = turn % #tokens + 1
    local body
    if items == 0 then
        body = body_of(turn)
    else
        local merged = pieces_for({
            device = devices[turn],
            instance = instances[turn],
            time = string.format("%d", math.floor(microseconds(REALTIME) / 1000)),
        })
        local parts = {}
        for item = 1, items do
            parts[item] = item_of(merged)
        end
        body = '{"items":[{"type":"prompt","body":' .. table.concat(parts, '},{"type":"prompt","body":') .. "}]}"
    end
    if verified then
        sent = sent + 1
        began[sent] = microseconds(MONOTONIC)
    end
    if sent == 1 then
        first_us = began[1]
        deadline_us = seconds > 0 and first_us + seconds * 1000000 or math.huge
    end
    -- The very first call is wrk's own look at the script; it is not sent.
    verified = true
    return head .. tokens[turn] .. "\r\nX-Request-ID: " .. sent .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

function response(status, headers, body)
    last_us = microseconds(MONOTONIC)
    answered = answered + 1
    local id = tonumber(headers["X-Request-ID"] or headers["x-request-id"])
    if id and began[id] then
        table.insert(latencies, last_us - began[id])
        began[id] = nil
    end
    statuses[status] = (statuses[status] or 0) + 1
    if items > 0 and status == 200 then
        for code in body:gmatch('"status":%s*(%d+)') do
            item_statuses[code] = (item_statuses[code] or 0) + 1
        end
    end
    if status ~= 200 and status ~= 201 and sample == "" then
        sample = body:sub(1, 300)
    end
end

local function counts(of)
    local parts = {}
    for status, count in pairs(of) do
        table.insert(parts, string.format('"%s":%d', status, count))
    end
    return "{" .. table.concat(parts, ",") .. "}"
end

local function percentile(share)
    return latencies[math.max(1, math.ceil(#latencies * share))] or 0
end

local function finish()
    table.sort(latencies)
    report = string.format(
        '"finished":true,"sent":%d,"answered":%d,"timed":%d,"seconds":%.6f,"statuses":%s,"items":%s,'
            .. '"p50_us":%d,"p99_us":%d,"max_us":%d,"sample":"%s"',
        sent,
        answered,
        #latencies,
        (last_us - first_us) / 1000000,
        counts(statuses),
        counts(item_statuses),
        percentile(0.5),
        percentile(0.99),
        percentile(1),
        sample:gsub("[^%w ._:,-]", "'")
    )
    -- As Ctrl-C does: the main thread need not sleep to its end.
    ffi.C.kill(ffi.C.getpid(), SIGINT)
end

-- wrk asks before every request how long its connection is to wait.
function delay()
    if (deadline_us and microseconds(MONOTONIC) >= deadline_us) or (limit > 0 and granted >= limit) then
        parked = parked + 1
        if parked == connections then
            finish()
        end
        return FAR_AWAY_MS
    end
    granted = granted + 1
    return 0
end

function done(summary, latency, requests)
    local errors = summary.errors
    local text = threads[1]:get("report")
    print(string.format(
        '{%s"connect_errors":%d,"read_errors":%d,"write_errors":%d,"timeouts":%d}',
        text == "" and '"finished":false,' or text .. ",",
        errors.connect,
        errors.read,
        errors.write,
        errors.timeout
    ))
end
