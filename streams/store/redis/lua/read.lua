-- Rows of one partition and its watermark, as of one moment.
--
-- KEYS[1]   the watermark; KEYS[2…] the rows. All carry the tag of one partition.
--
-- Returns the watermark's offset ('' for none), then state, vector and model of each row, one after the other
-- (nil where there is none). One flat reply: parsing it costs a third of as many replies to HMGET.
local found = {redis.call('HGET', KEYS[1], 'offset') or ''}
for row = 2, #KEYS do
  local fields = redis.call('HMGET', KEYS[row], 'state', 'vector', 'model')
  found[#found + 1] = fields[1]
  found[#found + 1] = fields[2]
  found[#found + 1] = fields[3]
end
return found
