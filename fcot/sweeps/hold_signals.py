"""Replace this process by a command, with the warning signals held back until the command asks for them.

SLURM's warning may come while Python is still starting: it may come up to a minute earlier than configured, and a preemption comes at any
time. Without a handler it would end the process, and SLURM would take the job for failed instead of requeueing it. A blocked signal stays
pending across ``exec``, and is delivered when :func:`fcot.base.stopping.listen` releases it.

Run as a script, without fcot or any other import that takes time: ``python -S -I hold_signals.py COMMAND ARGUMENT...``
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2, signal.SIGTERM))
    os.execv(sys.argv[1], sys.argv[1:])
