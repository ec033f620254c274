"""What the processes of an application say to each other over TCP, and how it is framed.

Ray tells where somebody listens, once; what is said often does not go through Ray, where a call costs both sides some
milliseconds of CPU.

    framing    `FramedConnection`, one end of a connection: lists of messages, each frame one write
    entrance   `Acceptor`, where others connect who have its `Endpoint` from Ray
    requests   what an ingress and a replica say about requests
    states     what replicas tell the hub of themselves, and the hub the ingresses
"""
