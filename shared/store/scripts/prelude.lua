-- Stands before every script.
-- Take an id off a list that clients page through, and keep its place for an hour: it may be somebody's `after`.
-- `places` is the beginning of the places' keys.
local function leave_list(list, id, places)
  local place = redis.call('ZSCORE', list, id)
  if not place then return end
  redis.call('SET', places .. id, place, 'EX', 3600)
  redis.call('ZREM', list, id)
end
-- Whether a write to a job was done before: its caller repeats it, with the same nonce, when no answer came.
local function is_done(job, nonce)
  return nonce ~= '' and string.find(redis.call('HGET', job, 'nonces') or '', nonce, 1, true) ~= nil
end
-- Note that it is done; the last eight are known, as many as writers there may be at once, and more.
local function note_done(job, nonce)
  if nonce == '' then return end
  local known = (redis.call('HGET', job, 'nonces') or '') .. ' ' .. nonce
  redis.call('HSET', job, 'nonces', string.sub(known, -8 * (#nonce + 1)))
end
-- Whether a writer with this token has been replaced: whoever claims a lease becomes the owner, and stays it when the
-- lease runs out, until another claims it. "" is a writer that needs no lease.
local function is_fenced_off(owned, token)
  return token ~= '' and redis.call('HGET', owned, 'owner') ~= token
end
