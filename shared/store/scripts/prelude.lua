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
-- Take the value of an API key out of use; for 30 days it is still known as what it was.
-- `valid_until` is the Unix time until which it works all the same, '0' for not at all. The others are the beginnings of
-- the keys of records, times of use and former values.
local function retire_key(digest, id, valid_until, records, uses, formers)
  redis.call('DEL', records .. digest, uses .. digest)
  redis.call('SET', formers .. digest, id .. ' ' .. valid_until, 'EX', 2592000)
end
