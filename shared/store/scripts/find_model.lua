-- What a name may mean to a project: models of that name, and the alias with the models that it names.
-- KEYS: bases, models shared with the project, alias or nothing.  ARGV: name, beginnings of the adapters'
-- keys and of the keys of their settings, fields of settings.
-- Returns the alias's record or nil, then for each name, the one asked for first: name, base or nil, adapter or nil,
-- "1" if the project shares it, values of its settings' fields.
local fields = {unpack(ARGV, 4)}
local function look(name)
  return {
    name, redis.call('HGET', KEYS[1], name), redis.call('GET', ARGV[2] .. name),
    redis.call('SISMEMBER', KEYS[2], name), redis.call('HMGET', ARGV[3] .. name, unpack(fields))
  }
end
local found = {false, look(ARGV[1])}
local raw = KEYS[3] and redis.call('GET', KEYS[3])
if raw then
  local alias = cjson.decode(raw)
  found[1] = raw
  found[3] = look(alias['target'])
  for _, other in ipairs({'canary', 'shadow'}) do
    if alias[other] then found[#found + 1] = look(alias[other]['model']) end
  end
end
return found
