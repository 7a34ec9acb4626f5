-- Return the bytes of a project's files, stored answers and eval runs, and of the models that it lists, adding them up
-- if nobody has; -1 while more of the answers have expired than one call drops.
-- KEYS: files of the project, bytes of the project, its models, its stored answers and eval runs
-- ARGV: prefixes of file and of adapter keys
if drop_expired(KEYS[4], KEYS[2]) then return -1 end
local used = redis.call('GET', KEYS[2])
if used then return tonumber(used) end
local sum = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local raw = redis.call('GET', ARGV[1] .. id)
  if raw then sum = sum + cjson.decode(raw)['size_bytes'] end
end
for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local raw = redis.call('GET', ARGV[2] .. name)
  if raw then sum = sum + (cjson.decode(raw)['size_bytes'] or 0) end
end
for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  sum = sum + tonumber(string.match(member, ' (%d+)$'))
end
redis.call('SET', KEYS[2], string.format('%.0f', sum))
return sum
