-- Stands before every script.
-- Take an id off a list that clients page through, and keep its place for an hour: it may be somebody's `after`.
-- `places` is the beginning of the places' keys.
local function leave_list(list, id, places)
  local place = redis.call('ZSCORE', list, id)
  if not place then return end
  redis.call('SET', places .. id, place, 'EX', 3600)
  redis.call('ZREM', list, id)
end
