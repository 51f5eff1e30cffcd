"""The agent's world without Gymnasium: states, actions, observations, policies."""
