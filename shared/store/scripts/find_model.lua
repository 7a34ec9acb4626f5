-- What a name may mean to a project: models of that name, and the alias with the models that it names.
-- KEYS: bases, models shared with the project, alias or nothing.  ARGV: name, beginning of the adapters' keys.
-- Returns the alias's record or nil, then for each name, the one asked for first: name, base or nil, adapter or nil,
-- "1" if the project shares it.
local function look(name)
  return {
    name, redis.call('HGET', KEYS[1], name), redis.call('GET', ARGV[2] .. name),
    redis.call('SISMEMBER', KEYS[2], name)
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
