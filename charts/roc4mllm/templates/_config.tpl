{{- /*
A tree of values as TOML: plain keys first, then a table each. Numbers of values files arrive as floats, and whole ones
are written as the integers that they were.
dict path, tree
*/ -}}
{{- define "roc4mllm.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .tree }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "roc4mllm.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .tree }}
{{- if kindIs "map" $value }}
{{- $table := ternary $key (printf "%s.%s" $path $key) (empty $path) }}

[{{ $table }}]
{{- include "roc4mllm.toml" (dict "path" $table "tree" $value) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "roc4mllm.tomlValue" -}}
{{- if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "roc4mllm.tomlValue" $value }}{{ end }}]
{{- else if kindIs "string" . -}}
{{ toJson . }}
{{- else if kindIs "float64" . -}}
{{ if eq . (floor .) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{- /* What the chart itself decides: where the port, the cache and the certificates are. dict root, gpu */ -}}
{{- define "roc4mllm.ownConfig" -}}
{{- $values := .root.Values -}}
http:
  listen: {{ printf ":%d" (int $values.service.port) | quote }}
postgres:
  migrate_at_start: {{ not $values.migration.enabled }}
  {{- with $values.tls.postgres }}
  {{- if .existingSecret }}
  tls_ca_file: /etc/roc4mllm/tls/postgres/{{ .caKey }}
  {{- end }}
  {{- end }}
model:
  device: {{ ternary "cuda" "cpu" (gt (int .gpu) 0) }}
registry:
  cache_dir: /var/cache/roc4mllm
telemetry:
  log_format: json
{{- if and (include "roc4mllm.usesTls" .root) $values.tls.kafka.existingSecret }}
kafka:
  tls:
    ca: /etc/roc4mllm/tls/kafka/{{ $values.tls.kafka.caKey }}
    {{- if $values.tls.kafka.clientCertificate }}
    cert: /etc/roc4mllm/tls/kafka/{{ $values.tls.kafka.certKey }}
    key: /etc/roc4mllm/tls/kafka/{{ $values.tls.kafka.keyKey }}
    {{- end }}
{{- end }}
{{- end -}}

{{- define "roc4mllm.usesTls" -}}
{{- if has .Values.config.kafka.security (list "tls" "sasl_tls") -}}true{{- end -}}
{{- end -}}

{{- define "roc4mllm.usesSasl" -}}
{{- if has .Values.config.kafka.security (list "sasl_plaintext" "sasl_tls") -}}true{{- end -}}
{{- end -}}

{{- /* The merged configuration as YAML: the chart's own, then `config`, then what differs. dict root, gpu, config */ -}}
{{- define "roc4mllm.effectiveConfig" -}}
{{- $own := include "roc4mllm.ownConfig" (dict "root" .root "gpu" .gpu) | fromYaml -}}
{{- mustMergeOverwrite $own (deepCopy .root.Values.config) (deepCopy (.config | default dict)) | toYaml -}}
{{- end -}}

{{- /* The pools that exist, each with its defaults filled in, as YAML. */ -}}
{{- define "roc4mllm.pools" -}}
{{- $defaults := .Values.workerDefaults -}}
{{- $pools := dict -}}
{{- range $name, $differences := .Values.workers -}}
{{- $pool := mustMergeOverwrite (deepCopy $defaults) (deepCopy ($differences | default dict)) -}}
{{- if $pool.enabled -}}
{{- $_ := set $pools $name $pool -}}
{{- end -}}
{{- end -}}
{{- toYaml $pools -}}
{{- end -}}
