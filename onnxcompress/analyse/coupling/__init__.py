"""The coupling engine: which channels of a graph must go together, found by letting ids flow.

Every channel of every producing layer gets an id of its own, and the ids flow through the graph:
element-wise operators unite the ids that meet, data movement is executed on the tensor of ids by
the very kernel that moves the data, and what nobody has a rule for is a barrier with a reason.
Besides its id every element carries the value it takes when its channel is zero at its producer.
"""
