"""`toy-reach`: a point in a square goes round a disc to a goal. There are two ways, and the mean of both is blocked."""

from datasets.spec import Recipe, TaskSpec, generated_name

SUITE = "toy"
DOMAIN = "toy-reach"
KINDS = {"mixed": False}  # and whether a set is made for one task
TASKS = {
    DOMAIN: TaskSpec(
        name=DOMAIN,
        suite=SUITE,
        domain=DOMAIN,
        task_id=1,
        obs_dim=2,  # x, y
        action_dim=2,
        max_episode_steps=20,
        least_reward=-1,
        dataset=generated_name(DOMAIN, Recipe("mixed", episodes=200, seed=0)),
        success_rule="last",  # an episode ends at its first success
    )
}
