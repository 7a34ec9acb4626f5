-- Take from several token buckets (Turner 1986), from all of them or from none. A bucket holds a minute's worth and
-- fills evenly; one that is not there is full.
-- KEYS: buckets.  ARGV: cost, then for each bucket what it holds and gets in a minute.
-- Returns 1 taken or 0 not, milliseconds until trying again can help (-1: the cost is more than a bucket holds), and
-- for each bucket what it holds now, rounded down, and milliseconds until it is full.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local cost = tonumber(ARGV[1])
local levels, wait, possible = {}, 0, true
for i, bucket in ipairs(KEYS) do
  local size = tonumber(ARGV[i + 1])
  local stored = redis.call('HMGET', bucket, 'level', 'at')
  local level = size
  if stored[1] then
    local passed = math.max(0, now - tonumber(stored[2]))
    level = math.min(size, tonumber(stored[1]) + passed * size / 60000)
  end
  levels[i] = level
  if cost > size then possible = false end
  wait = math.max(wait, math.ceil((cost - level) * 60000 / size))
end
local taken = wait == 0
local answer = {taken and 1 or 0, possible and wait or -1}
for i, bucket in ipairs(KEYS) do
  local size = tonumber(ARGV[i + 1])
  local level = taken and levels[i] - cost or levels[i]
  local full = math.ceil((size - level) * 60000 / size)
  if taken and full > 0 then
    redis.call('HSET', bucket, 'level', string.format('%.17g', level), 'at', now)
    redis.call('PEXPIRE', bucket, full)
  end
  answer[#answer + 1] = math.floor(level)
  answer[#answer + 1] = full
end
return answer
