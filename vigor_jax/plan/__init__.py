"""Will a config fit on a pod that is not here, and how long will it take?"""
