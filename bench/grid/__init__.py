"""Many runs, on this machine or on Slurm: plan, launch, jobs, status."""
