-- Records of an index's members that have not vanished, in one round trip.
-- KEYS: index. ARGV: beginning of the records' keys.
local found = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local record = redis.call('GET', ARGV[1] .. member)
  if record then
    found[#found + 1] = record
  end
end
return found
