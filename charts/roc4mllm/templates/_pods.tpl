{{- define "roc4mllm.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser }}
runAsGroup: {{ .Values.podSecurity.runAsGroup }}
fsGroup: {{ .Values.podSecurity.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "roc4mllm.containerSecurityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The secret's keys as environment variables. */ -}}
{{- define "roc4mllm.secretEnv" -}}
{{- range $variable, $key := .Values.secrets.env }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.secrets.existingSecret }}
      key: {{ $key }}
{{- end }}
{{- end -}}

{{- /* For commands that read and write Kafka: their transactional id must differ from pod to pod. */ -}}
{{- define "roc4mllm.env" -}}
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
{{- include "roc4mllm.secretEnv" . }}
{{- end -}}

{{- define "roc4mllm.tlsVolumes" -}}
{{- if and (include "roc4mllm.usesTls" .) .Values.tls.kafka.existingSecret }}
- name: kafka-tls
  secret:
    secretName: {{ .Values.tls.kafka.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- include "roc4mllm.postgresTlsVolume" . }}
{{- end -}}

{{- define "roc4mllm.postgresTlsVolume" -}}
{{- with .Values.tls.postgres.existingSecret }}
- name: postgres-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "roc4mllm.tlsMounts" -}}
{{- if and (include "roc4mllm.usesTls" .) .Values.tls.kafka.existingSecret }}
- name: kafka-tls
  mountPath: /etc/roc4mllm/tls/kafka
  readOnly: true
{{- end }}
{{- include "roc4mllm.postgresTlsMount" . }}
{{- end -}}

{{- define "roc4mllm.postgresTlsMount" -}}
{{- if .Values.tls.postgres.existingSecret }}
- name: postgres-tls
  mountPath: /etc/roc4mllm/tls/postgres
  readOnly: true
{{- end }}
{{- end -}}

{{- /* resources with the GPUs: dict resources, gpu */ -}}
{{- define "roc4mllm.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $limits .gpu.resource (toString .gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- /* The node's labels that are asked for: dict nodeSelector, gpu */ -}}
{{- define "roc4mllm.nodeSelector" -}}
{{- $labels := deepCopy .nodeSelector -}}
{{- if and (gt (int .gpu.count) 0) .gpu.type -}}
{{- $_ := set $labels .gpu.typeLabel .gpu.type -}}
{{- end -}}
{{- with $labels }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Where the pods go: dict root, pod (with tolerations, priorityClassName, runtimeClassName, nodeSelector, gpu) */ -}}
{{- define "roc4mllm.placement" -}}
{{- include "roc4mllm.nodeSelector" .pod }}
{{- if gt (int .pod.gpu.count) 0 }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* What every pod of the chart has. */ -}}
{{- define "roc4mllm.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "roc4mllm.podSecurityContext" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
