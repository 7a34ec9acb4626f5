-- Return the bytes of a project's files, adding them up if nobody has yet.
-- KEYS: files of the project, bytes of the project.  ARGV: prefix of file keys.
local used = redis.call('GET', KEYS[2])
if used then return tonumber(used) end
local sum = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local raw = redis.call('GET', ARGV[1] .. id)
  if raw then sum = sum + cjson.decode(raw)['size_bytes'] end
end
redis.call('SET', KEYS[2], string.format('%.0f', sum))
return sum
