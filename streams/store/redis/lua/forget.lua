-- Remove a user's row from a generation that has not come to the user's erasure in the log yet. One that has holds
-- nothing older, and its row is what came after.
--
-- KEYS[1]   the watermark; KEYS[2] the users not encoded yet; KEYS[3] the row. All carry one tag.
-- ARGV[1]   offset of the erasure's frame   ARGV[2]  id of the interactions topic   ARGV[3]  user id
--
-- Returns how many rows were removed.
local at = redis.call('HMGET', KEYS[1], 'offset', 'topic_id')
if at[1] and at[2] == ARGV[2] and tonumber(at[1]) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('SREM', KEYS[2], ARGV[3])
return redis.call('DEL', KEYS[3])
