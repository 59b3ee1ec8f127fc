"""What every operator does to channels; an operator without a rule is a barrier."""
