"""What is done beside training: data, exports, rollouts of a policy to a data set, videos, mirrors to trackers."""
