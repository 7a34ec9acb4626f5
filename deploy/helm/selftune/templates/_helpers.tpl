{{/* Names, labels and the parts that the three services have in common. */}}

{{- define "selftune.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "selftune.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "selftune.labels" -}}
{{ include "selftune.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "selftune.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "selftune.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "selftune.secret" -}}
{{ .Values.secrets.existingSecret | default (printf "%s-keys" (include "selftune.name" .)) }}
{{- end }}

{{- define "selftune.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{ .root.Values.image.registry }}/{{ .root.Values.image.prefix }}-{{ .component }}:{{ $tag }}{{ if gt (int (.gpus | default 0)) 0 }}-cuda{{ end }}
{{- end }}

{{/* Settings as variables: SELFTUNE_ and the name in capitals; tables and lists as JSON. */}}
{{- define "selftune.settings" -}}
{{- range $name, $value := . }}
SELFTUNE_{{ $name | upper }}: {{ if or (kindIs "map" $value) (kindIs "slice" $value) }}{{ $value | toJson | quote }}{{ else if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ printf "%.0f" $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "selftune.redisUrl" -}}
{{- $redis := .Values.redis -}}
{{ if $redis.tls }}rediss{{ else }}redis{{ end }}://{{ if $redis.existingSecret }}{{ $redis.username }}:$(REDIS_PASSWORD)@{{ end }}{{ $redis.host }}:{{ $redis.port }}/{{ $redis.database }}{{ with $redis.urlOptions }}?{{ . }}{{ end }}
{{- end }}

{{/* The port of the object store: the endpoint's, else its scheme's. */}}
{{- define "selftune.s3Port" -}}
{{- $endpoint := urlParse (.Values.storage.s3.endpoint | default "https://s3") -}}
{{- $written := regexFind ":[0-9]+$" $endpoint.host -}}
{{ if $written }}{{ trimPrefix ":" $written }}{{ else if eq $endpoint.scheme "http" }}80{{ else }}443{{ end }}
{{- end }}

{{/* What every container's environment has. REDIS_PASSWORD comes before the URL that holds it. */}}
{{- define "selftune.env" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- if .Values.redis.existingSecret }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: {{ .Values.redis.passwordKey }}}}
{{- end }}
- name: SELFTUNE_REDIS_URL
  value: {{ include "selftune.redisUrl" . | quote }}
- name: SELFTUNE_INTERNAL_KEY
  valueFrom: {secretKeyRef: {name: {{ include "selftune.secret" . }}, key: internal-key}}
- name: SELFTUNE_KEY_SECRET
  valueFrom: {secretKeyRef: {name: {{ include "selftune.secret" . }}, key: key-secret}}
{{- end }}

{{- define "selftune.envFrom" -}}
- configMapRef: {name: {{ include "selftune.name" . }}}
{{- if and (eq .Values.storage.kind "s3") .Values.storage.s3.existingSecret }}
- secretRef: {name: {{ .Values.storage.s3.existingSecret }}}
{{- end }}
{{- end }}

{{/* Pods start anew when what they read has changed. */}}
{{- define "selftune.podAnnotations" -}}
checksum/settings: {{ include (print .root.Template.BasePath "/settings.yaml") .root | sha256sum }}
checksum/keys: {{ include (print .root.Template.BasePath "/keys.yaml") .root | sha256sum }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .metricsPort | quote }}
{{- with .annotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "selftune.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "selftune.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "selftune.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- if .Values.models.existingClaim }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "selftune.volumes" -}}
- name: data
  {{- if eq .Values.storage.kind "shared" }}
  persistentVolumeClaim: {claimName: {{ .Values.storage.shared.existingClaim | default (printf "%s-data" (include "selftune.name" .)) }}}
  {{- else if .Values.storage.local.storageClassName }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ .Values.storage.local.storageClassName }}
        resources: {requests: {storage: {{ .Values.storage.local.size }}}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.storage.local.size }}}
  {{- end }}
- name: tmp
  emptyDir: {}
{{- if .Values.models.existingClaim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.models.existingClaim }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "selftune.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpus) 0 }}{{ $resources = mergeOverwrite $resources (dict "limits" (dict .gpuResource (int .gpus))) }}{{ end -}}
{{ toYaml $resources }}
{{- end }}

{{/* Where pods run: one after the other on different nodes, as far as there are any. */}}
{{- define "selftune.placement" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "selftune.selector" . | nindent 8 }}
{{- with .service.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .service.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .service.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The services' pools: every value of `inference`, overridden by the pool's own. */}}
{{- define "selftune.pools" -}}
{{- $pools := dict -}}
{{- range $name, $own := .Values.inference.pools -}}
{{- $_ := set $pools $name (mergeOverwrite (deepCopy (omit $.Values.inference "pools")) ($own | default dict)) -}}
{{- end -}}
{{ toJson $pools }}
{{- end }}
